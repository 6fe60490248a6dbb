"""Textual inversion: words that a file brings, as diffusers knows them, in any case and wherever they stand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.families.registry import family_of
from sdcli.families.sd.embeddings import split_at
from sdcli.families.sd.text_encoder import own_words, tokenize
from sdcli.messages import Notice
from sdcli.models.opened import open_model
from tests.support import ASTRONAUT, draw, geometry_of, largest_difference, pictures, run_engine

REQUEST = replace(ASTRONAUT, prompt="a photo of foxy in the rain", negative="ugly", steps=2)


def embedding(path: Path, vectors: int = 2, width: int = 32, name: str = "emb_params") -> Path:
    generator = torch.Generator().manual_seed(3)
    save_file({name: torch.randn(vectors, width, generator=generator)}, path)
    return path


def sources(model: Path, *paths: Path) -> Sources:
    return Sources(str(model), embeddings=tuple(map(str, paths)))


@pytest.mark.parametrize("name", ["emb_params", "<foxy>"])
def test_the_picture_is_diffusers(tiny: Path, tmp_path: Path, name: str) -> None:
    path = embedding(tmp_path / "foxy.safetensors", name=name)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(str(tmp_path), weight_name=path.name, token="foxy")
    drawn = pipeline(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(REQUEST.seed),
        output_type="np",
    ).images[0]
    theirs = (torch.from_numpy(drawn) * 255).round().int()
    ours = draw(sources(tiny, path), request=REQUEST)
    assert largest_difference(ours, theirs) <= 1
    assert largest_difference(ours, draw(tiny, request=REQUEST)) > 1


@pytest.mark.parametrize("text", ["a photo of FOXY in the rain", "a photo of embedding:foxy in the rain"])
def test_the_name_in_any_case_or_after_the_word_embedding(tiny: Path, tmp_path: Path, text: str) -> None:
    model = sources(tiny, embedding(tmp_path / "foxy.safetensors"))
    assert torch.equal(draw(model, request=replace(REQUEST, prompt=text)), draw(model, request=REQUEST))


def test_the_negative_prompt_has_words_as_well(tiny: Path, tmp_path: Path) -> None:
    model, request = sources(tiny, embedding(tmp_path / "bad.safetensors")), replace(REQUEST, negative="bad, blurry")
    assert largest_difference(draw(model, request=request), draw(tiny, request=request)) > 1


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a cat", [("a cat", None)]),
        ("fox", [("", "fox"), ("", None)]),
        ("a Fox, foxes, fox-9!", [("a ", "fox"), (", foxes, ", "fox-9"), ("!", None)]),
        ("(fox)", [("(", "fox"), (")", None)]),
        ("firefox fox_1", [("firefox fox_1", None)]),
    ],
)
def test_names_are_whole_words_and_the_longer_one_is_meant(prompt: str, pieces: list[tuple[str, str | None]]) -> None:
    assert [*split_at(prompt, ["fox", "fox-9"])] == pieces


def test_vectors_of_a_word_stay_in_one_chunk_and_the_bound_holds(tiny: Path, tmp_path: Path) -> None:
    path = embedding(tmp_path / "long.safetensors", vectors=40)
    model = open_model("m", sources(tiny, path))
    length, own = geometry_of(model).prompt_tokens, own_words(model.parts["text_encoder"])
    for prompt in ("long", "long long", " ".join(["a"] * 50) + " long", "long " * 20):
        tokens = tokenize(model.parts["tokenizer"], length, [prompt, ""], own)
        request = replace(REQUEST, prompt=prompt, negative="")
        assert tokens.ids.shape[1] <= family_of(model).chunks(model, request)
        for chunk in tokens.ids[0]:
            assert int((chunk >= 2000).sum()) % 40 == 0


def test_what_does_not_fit_is_said(tiny: Path, tmp_path: Path) -> None:
    model = sources(tiny, embedding(tmp_path / "long.safetensors", vectors=75))
    events = run_engine(model, replace(REQUEST, prompt="long " * 9))
    assert any("75 tokens are left out" in event.what for event in events if isinstance(event, Notice))
    assert len(pictures(events)) == 1


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"emb_params": [2, 768]}, "vectors of 768 numbers, and this model's text encoder takes 32"),
        ({"clip_l": [2, 768], "clip_g": [2, 1280]}, "an embedding for Stable Diffusion XL"),
        ({"a": [2, 32], "b": [2, 32]}, "has 2 tensors and is no textual inversion"),
        ({"emb_params": [2, 2, 32]}, "is no list of vectors"),
        ({"emb_params": [0, 32]}, "is no list of vectors"),
        ({"emb_params": [76, 32]}, "is no list of vectors"),
    ],
)
def test_files_that_bring_no_word(tiny: Path, tmp_path: Path, tensors: dict[str, list[int]], said: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(SdcliError, match=said):
        open_model("m", sources(tiny, tmp_path / "x.safetensors"))


def test_a_pickle_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x04}\x94.")
    with pytest.raises(SdcliError, match="holds a pickle"):
        open_model("m", sources(tiny, tmp_path / "x.pt"))
