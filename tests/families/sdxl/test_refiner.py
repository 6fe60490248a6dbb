"""SDXL's refiner: one text encoder, a score in place of the picture's size, and pictures that are there alone."""

from __future__ import annotations

import json
import shutil
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from safetensors.torch import load_file, save_file

from sdcli.app.asked import Asked
from sdcli.app.tasks import request_of
from sdcli.engine.synthesize import write_model
from sdcli.errors import BadRequest, SdcliError
from sdcli.families.sd.single import CLIP_FOLDER
from sdcli.models.opened import open_model
from tests.engine.test_same_picture import gradient
from tests.families.sdxl.test_pictures import PLANS, REQUEST, opened, theirs
from tests.families.sdxl.test_single_file import original_second
from tests.families.sdxl.tiny import REFINER
from tests.originals import original_unet, original_vae
from tests.support import draw, largest_difference

EDIT = replace(REQUEST, width=64, strength=0.3, steps=10)
INIT = gradient(64, 64)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "refiner"
    folder.mkdir()
    deque(write_model(REFINER, folder), maxlen=0)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(CLIP_FOLDER / name, folder / "tokenizer_2" / name)
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    assert index["requires_aesthetics_score"] is True and index["force_zeros_for_empty_prompt"] is False
    nothing = {"text_encoder": [None, None], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index | nothing), "utf-8")
    return folder


@pytest.fixture(scope="module")
def pipeline(refiner: Path) -> Any:
    return opened(refiner, StableDiffusionXLImg2ImgPipeline)


@pytest.mark.parametrize("change", [{}, {"guidance": 1.0}, {"negative": ""}], ids=repr)
@pytest.mark.every(3)
def test_it_refines_as_the_pipeline_does(refiner: Path, pipeline: Any, change: dict[str, Any]) -> None:
    request = replace(EDIT, **change)
    expected = theirs(pipeline, request, image=INIT, strength=request.strength)
    assert largest_difference(draw(refiner, request=request, payload=INIT.tobytes()), expected) <= 1


def test_both_scores_have_a_say(refiner: Path, pipeline: Any) -> None:
    request = replace(EDIT, strength=1.0, steps=2)
    ours = draw(refiner, request=request, payload=INIT.tobytes())
    for name in ("aesthetic_score", "negative_aesthetic_score"):
        other = theirs(pipeline, request, image=INIT, strength=1.0, **{name: 9.0})
        assert largest_difference(ours, other) > 1, name


def test_what_was_cut_off_is_told_with_the_prompt_alone(refiner: Path, pipeline: Any) -> None:
    request = replace(EDIT, strength=1.0, steps=2, original_size=(640, 480), crop=(24, 8))
    sizes = {"original_size": (480, 640), "crops_coords_top_left": (8, 24)}
    expected = theirs(pipeline, request, image=INIT, strength=1.0, **sizes)
    assert largest_difference(draw(refiner, request=request, payload=INIT.tobytes()), expected) <= 1


@pytest.mark.parametrize("name", ["after each piece, one by one", "some of it, decoded in less"])
@pytest.mark.every(2)
def test_every_plan_has_the_same_bits(refiner: Path, name: str) -> None:
    ours = draw(refiner, request=EDIT, payload=INIT.tobytes(), plan=PLANS[name])
    assert torch.equal(ours, draw(refiner, request=EDIT, payload=INIT.tobytes()))


def write_single(folder: Path, path: Path) -> Path:
    """The same model as one file of the original layout."""
    read = {part: load_file(next((folder / part).glob("*.safetensors"))) for part in ("unet", "vae", "text_encoder_2")}
    named = {
        "model.diffusion_model.": original_unet(read["unet"]),
        "first_stage_model.": original_vae(read["vae"]),
        "conditioner.embedders.0.": original_second(read["text_encoder_2"]),
    }
    save_file({home + name: one.contiguous() for home, some in named.items() for name, one in some.items()}, path)
    return path


@pytest.mark.full
def test_a_file_is_the_model_that_its_folder_is(refiner: Path, tmp_path: Path) -> None:
    path = write_single(refiner, tmp_path / "m.safetensors")
    single, whole = open_model("m", path), open_model("m", refiner)
    assert single.family == whole.family == "sdxl_refiner"
    assert [*single.parts] == [*whole.parts] == ["tokenizer_2", "text_encoder_2", "scheduler", "unet", "vae"]
    assert single.parts["unet"].config["transformer_layers_per_block"] == [1, 2, 2]
    ours = draw(path, request=EDIT, payload=INIT.tobytes())
    assert torch.equal(ours, draw(refiner, request=EDIT, payload=INIT.tobytes()))


def test_it_draws_nothing_from_words_alone(refiner: Path) -> None:
    with pytest.raises(BadRequest, match="'m' is SDXL's refiner, which goes over a picture that is there: give"):
        request_of(Asked("a", seed=0), open_model("m", refiner), None, lambda note: None)


def test_the_base_model_saved_for_img2img_is_the_base_model(xl: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(xl, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text("utf-8"))
    index["_class_name"] = "StableDiffusionXLImg2ImgPipeline"
    (copy / "model_index.json").write_text(json.dumps(index), "utf-8")
    assert open_model("m", copy).family == "sdxl"


def test_a_base_model_that_lacks_an_encoder_is_no_refiner(xl: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(xl, tmp_path / "copy")
    shutil.rmtree(copy / "text_encoder")
    with pytest.raises(SdcliError, match="lacks text_encoder"):
        open_model("m", copy)
