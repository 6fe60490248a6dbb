"""Distilled children of SDXL draw by default as the code on their cards does, through diffusers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    TCDScheduler,
)

from sdcli.app.asked import Asked
from sdcli.app.tasks import request_of
from sdcli.domain import Lora, Model, Sources, WeightFile
from sdcli.errors import BadRequest
from sdcli.models.few_steps import few_steps_of
from sdcli.models.opened import open_model
from tests.families.sdxl.test_pictures import opened, theirs
from tests.support import draw, largest_difference

TRAILING = {"timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Card:
    """What the code on a card sets: a scheduler made from the model's own, with settings, and arguments of the call."""

    scheduler: Any
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


LORAS = {
    "sdxl_lightning_2step_lora": Card(EulerDiscreteScheduler, 2, TRAILING),
    "sdxl_lightning_8step_lora": Card(EulerDiscreteScheduler, 8, TRAILING),
    "Hyper-SDXL-2steps-lora": Card(DDIMScheduler, 2, TRAILING),
    "Hyper-SDXL-1step-lora": Card(TCDScheduler, 1, {}, {"eta": 1.0}),
    "TCD-SDXL-LoRA": Card(TCDScheduler, 4, {}, {"eta": 0.3}),
    "dmd2_sdxl_4step_lora": Card(LCMScheduler, 4, {}, {"timesteps": [999, 749, 499, 249]}),
    "lcm-lora-sdxl": Card(LCMScheduler, 4),
}
CHECKPOINTS = {
    "sdxl_lightning_4step": Card(EulerDiscreteScheduler, 4, TRAILING),
    "sdxl_lightning_1step_x0": Card(EulerDiscreteScheduler, 1, TRAILING | {"prediction_type": "sample"}),
    "Hyper-SDXL-1step-Unet": Card(LCMScheduler, 1, {}, {"timesteps": [800]}),
    "dmd2_sdxl_4step_unet": Card(LCMScheduler, 4, {}, {"timesteps": [999, 749, 499, 249]}),
    "dmd2_sdxl_1step_unet": Card(LCMScheduler, 1, {}, {"timesteps": [399]}),
    "sd_xl_turbo_1.0_fp16": Card(EulerAncestralDiscreteScheduler, 4, TRAILING),
}
"""By the names of the files. Cards: ByteDance/SDXL-Lightning, ByteDance/Hyper-SD, h1t/TCD-SDXL-LoRA, tianweiy/DMD2,
latent-consistency/lcm-lora-sdxl, stabilityai/sdxl-turbo (which has one step to four)."""


@pytest.fixture(scope="module")
def pipeline(xl: Path) -> Any:
    return opened(xl)


def with_lora(model: Model, name: str) -> Model:
    return replace(model, loras=(Lora(WeightFile(Path(f"{name}.safetensors"), 0, {}, "", ""), 1.0, 1),))


def as_a_file(model: Model, path: Path) -> Model:
    path.touch()
    return replace(model, ref=str(path), sources=Sources(str(path)))


@pytest.mark.parametrize("name", [*LORAS, *CHECKPOINTS])
@pytest.mark.every(3)
def test_nothing_said_draws_as_the_card_s_code_does(xl: Path, pipeline: Any, tmp_path: Path, name: str) -> None:
    card, model = (LORAS | CHECKPOINTS)[name], open_model("m", xl)
    path = tmp_path / f"{name}.safetensors"
    model = with_lora(model, name) if name in LORAS else as_a_file(model, path)
    request = request_of(Asked("a fox", seed=5), model, None, lambda note: None)
    assert (request.steps, request.guided) == (card.steps, False)

    kept = pipeline.scheduler.config
    made = StableDiffusionXLPipeline(**pipeline.components, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    made.scheduler = card.scheduler.from_config(kept, **card.settings)
    expected = theirs(made, replace(request, guidance=0.0), **card.call)
    prediction = "sample" if "prediction_type" in card.settings else None
    ours = draw(Sources(str(xl), prediction=prediction), request=request)
    assert ours.float().std() > 5 and largest_difference(ours, expected) <= 1


def test_a_file_whose_name_says_x0_predicts_the_picture(tmp_path: Path) -> None:
    from sdcli.families.sd.single import told_prediction

    for name, told in (("sdxl_lightning_1step_x0", "sample"), ("sdxl_lightning_1step_unet_x0", "sample")):
        assert (told_prediction(WeightFile(tmp_path / f"{name}.safetensors", 0, {}, "", "")) or ("",))[0] == told
    for name in ("x0", "sdxl_lightning_4step", "style_1step"):
        assert told_prediction(WeightFile(tmp_path / f"{name}.safetensors", 0, {}, "", "")) is None


def test_times_go_with_as_many_steps(xl: Path, tmp_path: Path) -> None:
    model = as_a_file(open_model("m", xl), tmp_path / "dmd2_sdxl_1step_unet.safetensors")
    few = few_steps_of(model, False)
    assert few is not None and (few.sampler, few.schedule) == ("LCM", "399")
    more = request_of(Asked("a", seed=0, steps=3), model, None, lambda note: None)
    assert (more.sampler, more.schedule, more.steps) == ("LCM", None, 3)
    for schedule, steps in (("399", 2), ("1000,3", 2)):
        with pytest.raises(BadRequest, match="times: give --steps as many, and times below 1000"):
            asked = Asked("a", seed=0, steps=steps, sampler="lcm", schedule=schedule)
            request_of(asked, model, None, lambda note: None)
    with pytest.raises(BadRequest, match="no schedule '3,99'"):
        request_of(Asked("a", seed=0, sampler="lcm", schedule="3,99"), model, None, lambda note: None)


@pytest.mark.full
def test_trailing_times_of_lcm_are_those_that_are_named(xl: Path) -> None:
    request = replace(request_of(Asked("a", seed=0), open_model("m", xl), None, lambda note: None), guidance=1.0)
    named, even = (
        draw(xl, request=replace(request, steps=4, sampler="LCM", schedule=schedule))
        for schedule in ("999,749,499,249", "trailing")
    )
    assert torch.equal(named, even)
    assert largest_difference(even, draw(xl, request=replace(request, steps=4, sampler="LCM"))) > 1
