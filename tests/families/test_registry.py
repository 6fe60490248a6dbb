"""A family that is not in the house: registered by a test, recognised, and its folders opened from its parts alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sdcli.domain import Model, Request
from sdcli.errors import SdcliError
from sdcli.families import registry
from sdcli.families.contract import SCHEDULER, Defaults, Geometry, Part, Settings, Stage
from sdcli.families.registry import by_name, family_of, recognise, register
from sdcli.families.rules import is_size, setting
from sdcli.models.hub import model_folders_in
from sdcli.models.opened import open_model
from sdcli.models.synthetic import weight_path, write_texts

TOY_CONFIGS: dict[str, dict[str, Any]] = {
    "scheduler": {"_class_name": "DDIMScheduler"},
    "brush": {"_class_name": "ToyBrush", "hairs": 5, "colour": "red"},
}


@dataclass(frozen=True)
class Brush(Settings):
    hairs: int = setting(3, is_size)
    length: int = setting(7, is_size)


class Toy:
    name = "brush"
    network = "toys.network"
    pipelines: tuple[str, ...] = ("BrushPipeline",)
    index_extras: Mapping[str, object] = {}
    extras: tuple[Part, ...] = ()
    parts: tuple[Part, ...] = (
        SCHEDULER,
        Part("brush", classes=frozenset({"ToyBrush"}), schema=Brush, stem="hairs", tells=True),
    )
    defaults = Defaults(steps=4, guidance=1.0)

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        return (Stage("draw", "steps", ("brush",), "the brush"),)

    def geometry(self, model: Model) -> Geometry:
        return Geometry(1, model.parts["brush"].settings.length, (64, 64), 8)

    def chunks(self, model: Model, request: Request) -> int:
        return 1

    def require_fit(self, ref: str, model: Model) -> None:
        if model.parts["brush"].settings.hairs > 9:
            raise SdcliError("a brush of more than 9 hairs")

    def label(self, model: Model) -> str:
        return "brush"

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        return {"brush/colours.txt": "red\n"}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The family, in the list for as long as the test runs."""
    monkeypatch.setattr(registry, "_FAMILIES", {**registry._FAMILIES})
    family = Toy()
    register(family)
    return family


@pytest.fixture
def toy_folder(toy: Toy, tmp_path: Path) -> Path:
    """A whole model of it."""
    folder = tmp_path / "toys" / "mine"
    folder.mkdir(parents=True)
    write_texts(TOY_CONFIGS, folder)
    header = json.dumps({"hair": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    weight_path(folder, toy.parts[1]).write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    return folder


def test_a_registered_family_s_folder_is_opened_from_its_parts(toy: Toy, toy_folder: Path) -> None:
    assert (toy_folder / "brush" / "colours.txt").read_text() == "red\n"
    model = open_model("mine", toy_folder)
    assert (model.family, [*model.parts]) == ("brush", ["scheduler", "brush"])
    assert family_of(model) is toy is by_name("brush")
    brush = model.parts["brush"]
    assert (brush.settings, brush.config, brush.passed_over) == (Brush(5, 7), {"hairs": 5}, ("colour",))
    assert [*brush.weights()] == ["hair"] and toy.geometry(model).latent_factor == 7
    (toy_folder / "model_index.json").unlink()
    assert open_model("mine", toy_folder).family == "brush"


def test_what_is_wrong_with_it_is_said_in_its_own_words(toy_folder: Path) -> None:
    config = toy_folder / "brush" / "config.json"
    for hairs, words in (
        (0, r"sets 'hairs' to what no known model has \('0'\)"),
        (10, "a brush of more than 9 hairs"),
    ):
        config.write_text(json.dumps({"_class_name": "ToyBrush", "hairs": hairs}))
        with pytest.raises(SdcliError, match=words):
            open_model("mine", toy_folder)
    config.write_text(json.dumps({"_class_name": "Evil"}))
    with pytest.raises(SdcliError, match="asks for the class 'Evil': refused; a brush may be ToyBrush"):
        open_model("mine", toy_folder)
    (toy_folder / "brush" / "hairs.safetensors").unlink()
    with pytest.raises(SdcliError, match=r"lacks brush/hairs\.safetensors"):
        open_model("mine", toy_folder)
    with pytest.raises(SdcliError, match=r"has some in it: give .*mine"):
        (toy_folder / "model_index.json").unlink()
        open_model("toys", toy_folder.parent)


def test_a_family_is_recognised_by_its_pipeline_else_by_most_of_its_parts(toy: Toy) -> None:
    assert recognise({"unet", "vae"}.__contains__, "BrushPipeline") is toy
    assert recognise({"brush"}.__contains__) is toy
    assert recognise({"brush", "unet", "vae"}.__contains__).name == "sd"
    assert recognise(set().__contains__).name == "sd"
    assert recognise({"brush"}.__contains__, "StableDiffusionPipeline").name == "sd"


def test_a_family_that_is_not_registered_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(SdcliError, match=r"model_index.json' says that this is 'BrushPipeline': not supported yet"):
        recognise({"brush"}.__contains__, "BrushPipeline", Path("model_index.json"))
    with pytest.raises(KeyError):
        by_name("brush")
    (tmp_path / "mine" / "brush").mkdir(parents=True)
    assert model_folders_in(tmp_path) == ""


def test_the_digest_tells_networks_and_headers_apart_and_not_places_and_times(toy_folder: Path) -> None:
    model = open_model("mine", toy_folder)
    moved = toy_folder.rename(toy_folder.with_name("yours"))
    weights = moved / "brush" / "hairs.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-2] + b"\1\1")
    assert open_model("yours", moved).digest == model.digest
    digests = {model.digest, replace(model, family="sd").digest}
    weights.write_bytes(content.replace(b"hair", b"tuft"))
    digests.add(open_model("m", moved).digest)
    weights.write_bytes(content)
    weights.rename(weights.with_name("hairs.fp16.safetensors"))
    digests.add(open_model("m", moved).digest)
    (moved / "brush" / "config.json").write_text(json.dumps({**TOY_CONFIGS["brush"], "hairs": 6}))
    digests.add(open_model("m", moved).digest)
    (moved / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "PNDMScheduler"}))
    (moved / "model_index.json").unlink()
    digests.add(open_model("m", moved).digest)
    assert len(digests) == 6
