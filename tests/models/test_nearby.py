"""What a file lacks is found where people keep it; what is nowhere is named, with what it is called and fetches it."""

from __future__ import annotations

import re
import shutil
from itertools import islice
from pathlib import Path

import pytest

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.models import nearby
from sdcli.models.opened import open_model
from tests.families.zimage.tiny import TINY
from tests.originals import original_vae
from tests.split_files import VAE, comfy_tree, made, original_z_image, tensors_of, write

DENOISER = "diffusion_models/z_image_turbo_bf16.safetensors"
WORDS, PIXELS = "text_encoders/qwen_3_4b.safetensors", "vae/ae.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made({**TINY, "dtype": "BF16", "vae": {**TINY["vae"], **VAE}}, tmp_path_factory.mktemp("models") / "z")


@pytest.fixture
def models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of models, and no Hub's cache."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "ComfyUI"
    comfy_tree(folder, home, Path(DENOISER).name, "ae.safetensors", original_z_image, original_vae)
    return home / "models"


def moved(models: Path, name: str, to: str) -> None:
    (models / to).parent.mkdir(parents=True, exist_ok=True)
    (models / name).rename(models / to)


def taken(path: Path) -> dict[str, str]:
    """Where each part comes from, as the model and one line say."""
    model = open_model("m", Sources(str(path)))
    note = next(note for note in model.notes if note.startswith("taken with it: "))
    said = {name: str((path.parent / where).resolve()) for name, where in re.findall(r"(\w+) '([^'…]*)'", note)}
    assert said.items() <= model.sources.parts.items() and (len(said) == len(model.sources.parts) or "…" in note)
    assert {part.name for part in model.parts.values() if part.folder != path.resolve()} == {*model.sources.parts}
    return dict(model.sources.parts)


def test_comfyui_s_folders_are_looked_in(models: Path) -> None:
    expected = {"text_encoder": models / WORDS, "vae": models / PIXELS, "tokenizer": models / "text_encoders"}
    assert taken(models / DENOISER) == {name: str(path.resolve()) for name, path in expected.items()}


@pytest.mark.parametrize("unet", [DENOISER, "unet/mine.safetensors", "diffusion_models/some/deeper/mine.safetensors"])
@pytest.mark.parametrize("words", [WORDS, "clip/Qwen_3_4B-fp8.safetensors", "text_encoders/ZIT/qwen3-4b.safetensors"])
def test_by_other_names_as_well(models: Path, unet: str, words: str) -> None:
    moved(models, DENOISER, unet)
    moved(models, WORDS, words)
    assert Path(taken(models / unet)["text_encoder"]).samefile(models / words)


def test_so_is_the_folder_of_the_file_itself(models: Path, tmp_path: Path) -> None:
    for name in (DENOISER, WORDS, PIXELS, "text_encoders/tokenizer.json"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        shutil.copy(models / name, tmp_path / "flat")
    shutil.rmtree(models)
    flat = tmp_path / "flat"
    expected = {"text_encoder": flat / Path(WORDS).name, "vae": flat / Path(PIXELS).name, "tokenizer": flat}
    assert taken(flat / Path(DENOISER).name) == {name: str(path) for name, path in expected.items()}


def test_a_folder_with_everything_is_looked_at_as_far_as_is_quick(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearby, "ENTRIES", 20)
    for folder in range(10):
        (models / "vae" / str(folder)).mkdir()
        for file in range(10):
            (models / "vae" / str(folder) / f"{file}.txt").touch()
    assert Path(taken(models / DENOISER)["vae"]) == (models / PIXELS).resolve()
    assert len([*islice(nearby._files(models / "vae"), 20)]) == 20


def test_parts_in_diffusers_layout_beside_it_are_taken(folder: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(folder, tmp_path / "repository"))
    write(original_z_image(tensors_of(folder, "transformer")), home / "z-image-turbo.safetensors")
    expected = {name: str(home / name) for name in ("text_encoder", "vae", "tokenizer")}
    assert taken(home / "z-image-turbo.safetensors") == expected


def test_comfyui_s_own_tokenizer_is_taken(models: Path) -> None:
    moved(models, "text_encoders/tokenizer.json", "../comfy/text_encoders/qwen25_tokenizer/tokenizer.json")
    assert taken(models / DENOISER)["tokenizer"].endswith("comfy/text_encoders/qwen25_tokenizer")


@pytest.mark.parametrize(
    "place", ["Qwen--Qwen3-4B/snapshots/1a/tokenizer.json", "Tongyi-MAI--Z-Image/snapshots/1a/tokenizer/tokenizer.json"]
)
def test_so_is_one_in_the_hub_s_cache(models: Path, tmp_path: Path, place: str) -> None:
    moved(models, "text_encoders/tokenizer.json", str(tmp_path / "cache" / f"models--{place}"))
    found = Path(taken(models / DENOISER)["tokenizer"])
    assert tmp_path / "cache" in found.parents


def test_files_that_were_pulled_are_found_in_the_cache(models: Path, tmp_path: Path) -> None:
    name = "models--Comfy-Org--z_image_turbo/snapshots/1a/split_files"
    for one in (WORDS, PIXELS):
        moved(models, one, str(tmp_path / "cache" / name / one))
    assert {*map(Path, taken(models / DENOISER).values())} > {tmp_path / "cache" / name / WORDS}


def test_an_option_goes_before_what_lies_there(models: Path) -> None:
    other = shutil.copy(models / PIXELS, models / "vae" / "other.safetensors")
    model = open_model("m", Sources(str(models / DENOISER), {"vae": str(other)}))
    assert model.sources.parts["vae"] == str(other) and model.parts["vae"].folder == other


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ([WORDS], "give --text-encoder, or put qwen_3_4b.safetensors beside it; sdcli models pull"
                  " Comfy-Org/z_image_turbo/split_files/text_encoders/qwen_3_4b.safetensors fetches it"),
        ([PIXELS], "give --vae, or put ae.safetensors beside it"),
        (["text_encoders/tokenizer.json"], "give --tokenizer, or put tokenizer.json beside it; sdcli models pull"
                                           " Qwen/Qwen3-4B/tokenizer.json fetches it"),
        ([WORDS, PIXELS], "put qwen_3_4b.safetensors and ae.safetensors beside it"),
    ],
)  # fmt: skip
def test_what_is_nowhere_is_named(models: Path, lacks: list[str], said: str) -> None:
    for name in lacks:
        (models / name).unlink()
    with pytest.raises(SdcliError, match=re.escape(said)) as caught:
        open_model("m", Sources(str(models / DENOISER)))
    assert "lacks" in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_tokenizer_is_refused(models: Path) -> None:
    for where in (models / WORDS, models / "vae"):
        with pytest.raises(SdcliError, match=r"is no tokenizer: give a folder with tokenizer\.json or vocab\.json"):
            open_model("m", Sources(str(models / DENOISER), {"tokenizer": str(where)}))


def test_parts_of_two_models_are_refused(models: Path, tmp_path: Path) -> None:
    wide = made({**TINY, "text_encoder": {**TINY["text_encoder"], "hidden_size": 64}}, tmp_path / "wide")
    write(tensors_of(wide, "text_encoder"), models / WORDS)
    with pytest.raises(SdcliError, match="takes 32 numbers a word and a text encoder that gives 64"):
        open_model("m", Sources(str(models / DENOISER)))
