"""Distilled models and LoRAs are told by what they are and what they are called, and nothing else is taken for one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdcli.app.asked import Asked, Note
from sdcli.app.tasks import request_of
from sdcli.domain import Lora, Model, WeightFile
from sdcli.models.few_steps import few_steps_of
from sdcli.models.opened import open_model


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return open_model("tiny", tiny)


def lora(path: str, weight: float = 1.0, **notes: str) -> Lora:
    return Lora(WeightFile(Path(path), 0, {}, "", "", notes), weight, 1)


@pytest.mark.parametrize(
    ("path", "method", "steps", "guidance", "sampler", "schedule"),
    [
        ("lcm-lora-sdv1-5.safetensors", "LCM", 4, 1, "LCM", None),
        ("hub/models--org--lcm-lora-sdv1-5/snapshots/1/pytorch_lora_weights.safetensors", "LCM", 4, 1, "LCM", None),
        ("sdxl_lightning_8step_lora.safetensors", "Lightning", 8, 1, "Euler", "trailing"),
        ("Hyper-SD15-8steps-lora.safetensors", "Hyper-SD", 8, 1, "DDIM", "trailing"),
        ("Hyper-SD15-12steps-CFG-lora.safetensors", "Hyper-SD", 12, 5, "DDIM", "trailing"),
        ("Hyper-SDXL-1step-lora.safetensors", "Hyper-SD", 1, 1, "TCD", None),
        ("dmd2_sdxl_4step_lora.safetensors", "DMD2", 4, 1, "LCM", "trailing"),
        ("sd_xl_turbo_1.0_fp16.safetensors", "Turbo", 4, 1, "Euler a", "trailing"),
        ("dreamshaperXLTurbo_v2.safetensors", "Turbo", 4, 1, "Euler a", "trailing"),
        ("tcd-sd15.safetensors", "TCD", 4, 1, "TCD", None),
    ],
)
def test_a_lora_is_told_by_its_name(
    model: Model, path: str, method: str, steps: int, guidance: float, sampler: str, schedule: str | None
) -> None:
    found = few_steps_of(replace(model, loras=(lora("hair.safetensors"), lora(path))), False)
    assert found is not None
    assert (found.method, found.steps, found.guidance) == (method, steps, guidance)
    assert (found.sampler, found.schedule) == (sampler, schedule)


@pytest.mark.parametrize(
    "name", ["hyper_detail", "hyperrealistic", "turbografx", "v1-5-pruned", "lcmish", "lightnings", "model", "4 steps"]
)
def test_no_other_name_is(model: Model, name: str) -> None:
    assert few_steps_of(replace(model, loras=(lora(f"{name}.safetensors"),)), False) is None


def test_a_lora_is_told_by_its_title_and_one_of_no_weight_is_not(model: Model) -> None:
    titled = lora("a.safetensors", **{"modelspec.title": "LCM for all"})
    found = few_steps_of(replace(model, loras=(titled,)), False)
    assert found is not None and found.method == "LCM"
    assert few_steps_of(replace(model, loras=(lora("lcm.safetensors", 0.0),)), False) is None


def test_a_folder_keeps_its_scheduler(model: Model) -> None:
    found = few_steps_of(replace(model, ref="org/sd-turbo"), False)
    assert found is not None and (found.method, found.sampler) == ("Turbo", None)
    parts = {**model.parts, "scheduler": replace(model.parts["scheduler"], class_name="TCDScheduler")}
    own = few_steps_of(replace(model, parts=parts), False)
    assert own is not None and (own.method, own.sampler) == ("TCD", None)
    taking = few_steps_of(model, True)
    assert taking is not None and (taking.steps, taking.guidance) == (4, 8.5)


@pytest.mark.parametrize(
    ("said", "request_has", "told"),
    [
        ({}, (4, 1.0, "LCM"), "--steps 4 --guidance 1 --sampler LCM"),
        ({"steps": 7}, (7, 1.0, "LCM"), "--guidance 1 --sampler LCM"),
        ({"sampler": "euler", "guidance": 2.0}, (4, 2.0, "Euler"), "--steps 4"),
        ({"sampler": "model"}, (4, 1.0, None), "--steps 4 --guidance 1"),
        ({"steps": 7, "guidance": 2.0, "sampler": "euler"}, (7, 2.0, "Euler"), None),
    ],
)
def test_what_was_said_goes_before_what_is_assumed(
    model: Model, said: dict[str, Any], request_has: tuple[int, float, str | None], told: str | None
) -> None:
    notes = list[Note]()
    distilled = replace(model, loras=(lora("lcm-lora.safetensors"),))
    request = request_of(Asked("a", seed=0, **said), distilled, None, notes.append)
    assert (request.steps, request.guidance, request.sampler) == request_has
    lines = [note.what for note in notes]
    assert lines == ([f"taken for LCM, for the LoRA is called 'lcm-lora': {told}"] if told else [])


def test_a_flow_model_knows_itself(model: Model) -> None:
    scheduler = replace(model.parts["scheduler"], class_name="FlowMatchEulerDiscreteScheduler")
    turbo = replace(model, ref="org/Image-Turbo", parts={**model.parts, "scheduler": scheduler})
    assert few_steps_of(turbo, False) is None


def test_in_a_folder_that_may_not_be_looked_into_a_name_is_a_name(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = os.stat

    def refuse(path: Any, **more: Any) -> os.stat_result:
        if str(path) == "org/some-lcm":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", refuse)
    found = few_steps_of(replace(model, ref="org/some-lcm"), False)
    assert found is not None and found.method == "LCM"
