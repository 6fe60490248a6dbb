"""What the host knows of a Z-Image: which it is, what fits together, what is refused."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from PIL import Image

from sdcli.app.asked import Asked
from sdcli.app.tasks import prepare
from sdcli.domain import Model
from sdcli.errors import BadRequest, SdcliError
from sdcli.families.contract import Part
from sdcli.families.qwen3.parts import TOKENS_LIMIT
from sdcli.families.qwen3.tokens import tokenize
from sdcli.families.zimage.family import BASE, CHUNK, TURBO, ZImage
from sdcli.families.zimage.parts import TRANSFORMER, VAE
from sdcli.models.opened import open_model
from tests.families.zimage.tiny import FOX

Change = Callable[[dict[str, Any]], object]


def changed(model: Path, home: Path, part: str, change: Change) -> Path:
    copy = shutil.copytree(model, home / "z")
    path = copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    table = json.loads(path.read_text("utf-8"))
    change(table)
    path.write_text(json.dumps(table), "utf-8")
    return copy


@pytest.mark.parametrize(("part", "kind"), [(TRANSFORMER, ZImageTransformer2DModel), (VAE, AutoencoderKL)])
def test_the_defaults_of_a_network_are_its_class_s(part: Part, kind: type) -> None:
    library = inspect.signature(kind.__init__).parameters
    for field in fields(part.schema):
        default = library[field.name].default
        assert field.default == (tuple(default) if isinstance(default, list) else default), field.name
        assert field.metadata["rule"](list(field.default) if isinstance(field.default, tuple) else field.default)


def test_a_folder_without_an_index_is_known_by_its_networks(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "z")
    (copy / "model_index.json").unlink()
    assert open_model("z", copy).family == "zimage"


@pytest.mark.parametrize(("shift", "defaults"), [(3.0, TURBO), (6.0, BASE)])
def test_the_scheduler_s_shift_tells_turbo_from_base(model: Path, tmp_path: Path, shift: float, defaults: Any) -> None:
    opened = open_model("z", changed(model, tmp_path, "scheduler", lambda table: table.update(shift=shift)))
    assert ZImage().geometry(opened).defaults == defaults


def of_real_size(opened: Model, shift: float) -> Model:
    parts = {
        "transformer": replace(opened.parts["transformer"], config={}),
        "scheduler": replace(opened.parts["scheduler"], config={"shift": shift}),
    }
    return replace(opened, parts={**opened.parts, **parts})


def test_reports_call_it_by_its_name(model: Path) -> None:
    opened = open_model("z", model)
    assert ZImage().label(opened) == "zimage"
    assert ZImage().label(of_real_size(opened, 3.0)) == "z-image-turbo"
    assert ZImage().label(of_real_size(opened, 6.0)) == "z-image"


@pytest.mark.parametrize("prompt", ["", "a", "a fox", "狐" * 30, "\u0958" * 20, "x" * 9, "1" * 2000, "\udcff"])
def test_no_prompt_has_more_tokens_than_its_chunks(model: Path, prompt: str) -> None:
    opened = open_model("z", model)
    length = CHUNK * ZImage().chunks(opened, replace(FOX, prompt=prompt))
    assert length <= TOKENS_LIMIT
    if "\udcff" not in prompt:
        assert tokenize(opened.parts["tokenizer"], [prompt], thinking=True)[0].length <= length


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("transformer", {"in_channels": 16}, "a denoiser of 16 channels for latents of 8"),
        ("transformer", {"cap_feat_dim": 64}, "takes 64 numbers a word and a text encoder that gives 32"),
        ("transformer", {"n_kv_heads": 1}, "has 1 'n_kv_heads' for 3 'n_heads'"),
        ("transformer", {"n_heads": 5, "n_kv_heads": 5}, "has a 'dim' of 48, which 5 'n_heads' do not divide"),
        ("transformer", {"axes_dims": [4, 6, 8]}, "which are not the 16 of a head"),
        ("transformer", {"axes_dims": [5, 5, 6]}, "has an odd number among its 'axes_dims'"),
        ("transformer", {"axes_lens": [5, 5]}, "has 2 'axes_lens' for 3 axes"),
        ("transformer", {"all_patch_size": [4]}, "sets 'all_patch_size' to what no known model has"),
        ("transformer", {"siglip_feat_dim": 8}, "sets 'siglip_feat_dim' to '8': that is another family"),
        ("transformer", {"qk_norm": False}, "sets 'qk_norm' to what no known model has"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "asks for the class 'DDIMScheduler': refused"),
    ],
)
def test_what_does_not_fit_is_one_line(
    model: Path, tmp_path: Path, part: str, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(SdcliError, match=words):
        open_model("z", changed(model, tmp_path, part, lambda table: table.update(change)))


def test_an_init_image_has_sides_of_whole_patches(model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (104, 72)).save(tmp_path / "init.png")
    asked = Asked("a fox", 1, model=str(model), init=str(tmp_path / "init.png"))
    request = prepare(asked, lambda note: None, lambda name: lambda progress: None).request
    assert (request.width, request.height) == (112, 80)
    with pytest.raises(BadRequest, match="--width 104 is not a multiple of 16"):
        prepare(replace(asked, width=104), lambda note: None, lambda name: lambda progress: None)
