"""Inpainting against diffusers' own pipeline: with any model, and with those that are made for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from sdcli.domain import Request, Sources
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.schedulers import OURS
from sdcli.errors import SdcliError
from sdcli.messages import LatentsDone, StepDone
from sdcli.models.opened import open_model
from sdcli.models.samplers import SAMPLERS
from sdcli.models.schedulers import SCHEDULERS
from tests.engine.test_same_picture import eta_of, gradient, pipeline_of, with_scheduler
from tests.folders import made, with_clip
from tests.originals import FIRST, write_single
from tests.support import ASTRONAUT, RESIDENT, STREAMED, draw, largest_difference, pictures, run_engine

SIDE = 64
REQUEST = replace(ASTRONAUT, steps=6, strength=0.7, masked=True)
INPAINTING = {"unet": {"in_channels": 9}}


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as it would be if it were made for inpainting."""
    return made(tmp_path_factory.mktemp("models") / "nine", INPAINTING)


def square(*box: int) -> Image.Image:
    """A mask that is white in a box."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


MASK = square(16, 8, 48, 40)
EVERYTHING = square(0, 0, SIDE, SIDE)


def theirs(model: Path, request: Request, init: Image.Image, mask: Image.Image) -> torch.Tensor:
    """What diffusers draws, in FP32 on the CPU."""
    pipeline = diffusers.StableDiffusionInpaintPipeline(**pipeline_of(model).components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        request.prompt,
        image=init,
        mask_image=mask,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        strength=1.0 if request.strength is None else request.strength,
        generator=torch.Generator().manual_seed(request.seed),
        eta=eta_of(pipeline.scheduler),
    ).images[0]
    return torch.from_numpy(np.asarray(drawn).astype(np.int32))


def payload(mask: Image.Image = MASK) -> bytes:
    return gradient(SIDE, SIDE).tobytes() + mask.tobytes()


def drawn(model: Path, request: Request = REQUEST, mask: Image.Image = MASK, **options: Any) -> torch.Tensor:
    return draw(model, request=request, payload=payload(mask), **options)


@pytest.mark.every(6)
@pytest.mark.parametrize("strength", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["tiny", "nine"])
def test_inpainting_is_what_diffusers_draws(request: pytest.FixtureRequest, kind: str, strength: float) -> None:
    model: Path = request.getfixturevalue(kind)
    asked = replace(REQUEST, strength=strength, steps=10)
    ours = drawn(model, asked)
    assert largest_difference(ours, theirs(model, asked, gradient(SIDE, SIDE), MASK)) <= 1
    assert largest_difference(ours, draw(model, request=replace(asked, masked=False), payload=payload())) > 1


@pytest.mark.every(10)
@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"IPNDMScheduler", "LMSDiscreteScheduler"}))
@pytest.mark.parametrize("kind", ["tiny", "nine"])
def test_with_every_scheduler(request: pytest.FixtureRequest, tmp_path: Path, kind: str, name: str) -> None:
    # diffusers' inpainting knows no PNDM with Runge-Kutta steps
    model = with_scheduler(request.getfixturevalue(kind), tmp_path, name, skip_prk_steps=True)
    assert largest_difference(drawn(model), theirs(model, REQUEST, gradient(SIDE, SIDE), MASK)) <= 1


@pytest.mark.every(6)
@pytest.mark.parametrize("name", ["PNDMScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["tiny", "nine"])
def test_a_run_goes_on_from_any_step(request: pytest.FixtureRequest, tmp_path: Path, kind: str, name: str) -> None:
    model = with_scheduler(request.getfixturevalue(kind), tmp_path, name)
    asked = replace(REQUEST, count=2)
    events = run_engine(model, asked, payload=payload())
    whole = pictures(events)
    steps = [event for event in events if isinstance(event, StepDone) and event.image == 1]
    for stopped in (steps[0], steps[-2]):
        blob = stopped.payload
        resumed = run_engine(model, asked, payload=payload() + blob, checkpoints=(len(blob),))
        assert all(torch.equal(*pair) for pair in zip(pictures(resumed), whole, strict=True))


@pytest.mark.every(3)
@pytest.mark.parametrize("sampler", [one.name for one in SAMPLERS if {one.scheduler, one.levelled} & {*OURS}])
def test_samplers_of_ours_end_with_the_very_latents_outside_and_go_on(tiny: Path, sampler: str) -> None:
    asked = replace(REQUEST, sampler=sampler, schedule="karras", steps=4)
    steps = [event for event in run_engine(tiny, asked, payload=payload()) if isinstance(event, StepDone)]
    finished = Checkpoint.from_bytes(steps[-1].payload).latents
    known = [e for e in run_engine(tiny, replace(asked, strength=0.0), payload=payload()) if isinstance(e, LatentsDone)]
    same = finished == Checkpoint.from_bytes(known[0].payload).latents
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[1:5, 2:6] = True
    assert same[..., ~inside].all() and not same[..., inside].any()
    blob = steps[0].payload
    resumed = run_engine(tiny, asked, payload=payload() + blob, checkpoints=(len(blob),))
    last = [event for event in resumed if isinstance(event, StepDone)][-1]
    assert torch.equal(Checkpoint.from_bytes(last.payload).latents, finished)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_a_model_made_for_it_draws_from_words_alone_as_with_all_masked(nine: Path, guidance: float) -> None:
    asked = replace(ASTRONAUT, guidance=guidance)
    ours = draw(nine, request=asked)
    assert largest_difference(ours, theirs(nine, asked, gradient(SIDE, SIDE), EVERYTHING)) <= 1
    edit = replace(REQUEST, masked=False, guidance=guidance)
    ours = draw(nine, request=edit, payload=gradient(SIDE, SIDE).tobytes())
    assert largest_difference(ours, theirs(nine, edit, gradient(SIDE, SIDE), EVERYTHING)) <= 1


@pytest.mark.parametrize(
    "plan",
    [STREAMED, replace(RESIDENT, guidance="sequential"), replace(RESIDENT, attention_scratch_bytes=4096)],
    ids=["streamed", "sequential", "small scratch"],
)
def test_no_plan_changes_the_picture(tiny: Path, nine: Path, plan: Any) -> None:
    for model in (tiny, nine):
        assert largest_difference(drawn(model, plan=plan), drawn(model)) <= 1


def test_all_that_a_mask_touches_is_drawn_however_thin_it_is(tiny: Path) -> None:
    thin = square(21, 3, 22, 60)
    cells = square(16, 0, 24, SIDE)
    assert torch.equal(drawn(tiny, mask=thin), drawn(tiny, mask=cells))


def test_what_is_outside_changes_less(tiny: Path) -> None:
    only_through = drawn(tiny, replace(REQUEST, strength=0.0))
    inside = torch.from_numpy(np.asarray(MASK) > 0)
    changes = (drawn(tiny) - only_through).abs().float()
    assert changes[inside].mean() > 2 * changes[~inside].mean()


@pytest.mark.full
def test_a_single_file_may_be_made_for_it(tmp_path: Path) -> None:
    changes = {**FIRST, "unet": {**FIRST["unet"], "in_channels": 9}}
    folder = with_clip(made(tmp_path / "model", changes))
    single = Sources(str(write_single(folder, tmp_path / "m.safetensors")))
    one = run_engine(single, REQUEST, payload=payload())
    assert torch.equal(pictures(one)[0], drawn(folder))


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        (8, "looks like InstructPix2Pix"),
        (5, "a depth model"),
        (7, "an upscaler"),
        (12, "12 channels for latents of 4;"),
    ],
)
def test_denoisers_that_take_anything_else_are_refused_by_name(tmp_path: Path, channels: int, words: str) -> None:
    folder = made(tmp_path / "model", {"unet": {"in_channels": channels}})
    with pytest.raises(SdcliError, match=words):
        open_model("m", folder)
