"""Z-Image as ComfyUI's users have it, in split files or in one of the original names, draws the bits of its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file

from sdcli.domain import Sources
from sdcli.engine.schedulers import build_scheduler
from sdcli.families.registry import family_of
from sdcli.families.zimage.family import BASE, TURBO
from sdcli.models.opened import open_model
from sdcli.weights.source import Source
from tests.families.zimage.tiny import FOX, TINY
from tests.originals import original_vae
from tests.split_files import VAE, comfy_tree, made, original_z_image, settings_of, tensors_of, write
from tests.support import STREAMED, draw

NAME = "z_image_turbo_bf16.safetensors"
PUBLISHED = {**TINY, "dtype": "BF16", "vae": {**TINY["vae"], **VAE}}
SHORT = replace(FOX, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(PUBLISHED, tmp_path_factory.mktemp("models") / "z")


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denoiser in ComfyUI's folders."""
    home = tmp_path_factory.mktemp("ComfyUI")
    return comfy_tree(folder, home, NAME, "ae.safetensors", original_z_image, original_vae)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All in one file."""
    denoiser, text = original_z_image(tensors_of(folder, "transformer")), tensors_of(folder, "text_encoder")
    every = {f"model.diffusion_model.{name}": one for name, one in denoiser.items()}
    every |= {f"text_encoders.qwen3_4b.transformer.{name}": one for name, one in text.items()}
    every |= {f"vae.{name}": one for name, one in original_vae(tensors_of(folder, "vae")).items()}
    return write(every, tmp_path_factory.mktemp("one") / "zit_all.safetensors")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_names_and_numbers_are_those_of_the_library_s_converter(single: Path, tmp_path: Path, prefix: str) -> None:
    tensors = {f"{prefix}{name}": one for name, one in load_file(single).items()}
    given = {name: str(single.parents[1] / path) for name, path in PARTS.items()}
    component = open_model("m", Sources(str(write(tensors, tmp_path / "z.safetensors")), given)).parts["transformer"]
    expected = convert_z_image_transformer_checkpoint_to_diffusers(tensors)
    assert component.weights().keys() == expected.keys()
    with Source(component) as source:
        for name, tensor in expected.items():
            assert torch.equal(source.stored(name, tuple(tensor.shape)).tensor, tensor), name


PARTS = {
    "text_encoder": "text_encoders/qwen_3_4b.safetensors",
    "vae": "vae/ae.safetensors",
    "tokenizer": "text_encoders",
}


def test_settings_are_those_of_the_folder(folder: Path, single: Path, whole: Path) -> None:
    theirs, tokenizer = open_model("m", folder), {"tokenizer": str(folder / "tokenizer")}
    for ours in (open_model("m", Sources(str(single))), open_model("m", Sources(str(whole), tokenizer))):
        assert ours.family == theirs.family == "zimage"
        for name in ("transformer", "vae", "text_encoder"):
            expected = settings_of(theirs.parts[name]) | (
                {"axes_lens": (1024, 512, 512)} if name == "transformer" else {}
            )
            assert settings_of(ours.parts[name]) == expected, name
        schedulers = [build_scheduler(model.parts["scheduler"], 4).config for model in (ours, theirs)]
        assert schedulers[0] == schedulers[1]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.every(2)
def test_both_draw_the_bits_of_the_folder(folder: Path, single: Path, whole: Path, dtype: str) -> None:
    expected = draw(folder, request=SHORT, dtype=dtype)
    assert expected.float().std() > 20
    assert torch.equal(draw(Sources(str(single)), request=SHORT, dtype=dtype, plan=STREAMED), expected)
    tokenizer = {"tokenizer": str(folder / "tokenizer" / "tokenizer.json")}
    assert torch.equal(draw(Sources(str(whole), tokenizer), request=SHORT, dtype=dtype), expected)


@pytest.mark.parametrize(
    ("name", "defaults", "said"),
    [
        ("z_image_turbo_bf16", TURBO, "Z-Image-Turbo by its name"),
        ("moodyMix_zitV8", TURBO, "Z-Image-Turbo by its name"),
        ("somebody_s_own", TURBO, "Z-Image-Turbo assumed, as no tensor tells; if it is not the Turbo, give --steps 30"),
        ("z_image_bf16", BASE, "by its name this is Z-Image, not its Turbo"),
        ("my_zib_base_v2", BASE, "by its name this is Z-Image, not its Turbo"),
    ],
)
def test_turbo_or_base_is_told_by_the_name_of_the_file(single: Path, name: str, defaults: object, said: str) -> None:
    path = single.with_name(f"{name}.safetensors")
    if path != single:
        path.write_bytes(single.read_bytes())
    model = open_model("m", Sources(str(path)))
    assert family_of(model).geometry(model).defaults == defaults
    assert any(said in note for note in model.notes)
