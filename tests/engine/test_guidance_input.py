"""A model distilled to take the guidance as a number draws what diffusers draws, in one pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.app.asked import Asked
from sdcli.app.tasks import request_of
from sdcli.domain import Plan
from sdcli.engine.synthesize import write_model
from sdcli.messages import StepDone
from sdcli.models.opened import open_model
from tests.conftest import TINY
from tests.engine.test_same_picture import gradient, reference
from tests.support import ASTRONAUT, RESIDENT, STREAMED, draw, largest_difference, pictures, run_engine

LCM = {"_class_name": "LCMScheduler", **{key: TINY["scheduler"][key] for key in ("beta_start", "beta_end")}}
PARTIAL = replace(RESIDENT, residency="partial", resident_bytes=400_000)
ASKED = Asked("a", seed=0, negative="b", steps=4)


def distilled(folder: Path, **unet: Any) -> Path:
    """The tiny model with another input of its denoiser, and other options of it."""
    folder.mkdir()
    config = {**TINY, "scheduler": LCM, "unet": {**TINY["unet"], "time_cond_proj_dim": 16, **unet}}
    for _ in write_model(config, folder):
        pass
    return folder


@pytest.fixture(scope="module")
def lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilled(tmp_path_factory.mktemp("models") / "lcm")


@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5, 7.5, 14.0])
def test_the_guidance_is_an_input(lcm: Path, guidance: float) -> None:
    request = replace(ASTRONAUT, guidance=guidance)
    assert largest_difference(draw(lcm, request=request), reference(lcm, request)) <= 1
    assert not torch.equal(draw(lcm, request=request), draw(lcm, request=replace(request, guidance=guidance + 2)))


def test_img2img_takes_it_too(lcm: Path) -> None:
    request, init = replace(ASTRONAUT, steps=8, strength=0.6), gradient(64, 64)
    ours = draw(lcm, request=request, payload=init.tobytes())
    assert largest_difference(ours, reference(lcm, request, init)) <= 1


@pytest.mark.parametrize("options", [{"time_cond_proj_dim": 17}, {"act_fn": "gelu"}], ids=str)
def test_an_odd_size_and_a_unet_of_other_parts(tmp_path: Path, options: dict[str, Any]) -> None:
    model = distilled(tmp_path / "model", **options)
    assert largest_difference(draw(model), reference(model, ASTRONAUT)) <= 1


@pytest.mark.parametrize("plan", [STREAMED, PARTIAL, replace(RESIDENT, guidance="sequential")], ids=str)
def test_no_plan_changes_the_picture(lcm: Path, plan: Plan) -> None:
    assert torch.equal(draw(lcm, plan=plan), draw(lcm))


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(lcm: Path) -> None:
    events = run_engine(lcm)
    (whole,) = pictures(events)
    for stopped in [event for event in events if isinstance(event, StepDone)]:
        resumed = run_engine(lcm, payload=stopped.payload, checkpoints=(len(stopped.payload),))
        assert torch.equal(pictures(resumed)[0], whole)


def test_there_is_one_pass_and_no_negative_prompt(lcm: Path, tiny: Path) -> None:
    request = request_of(ASKED, open_model("lcm", lcm), None, lambda _: None)
    assert not request.guided and request_of(ASKED, open_model("tiny", tiny), None, lambda _: None).guided
    assert torch.equal(draw(lcm, request=ASTRONAUT), draw(lcm, request=replace(ASTRONAUT, negative="another")))
    assert not replace(request, width=128).guided
