"""--hires: a second round of steps at a larger size, against diffusers' pipelines one after the other by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image

from sdcli.domain import Hires, Request, Upscaler
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.enlarge import lanczos
from sdcli.families.prompts import turns_of
from sdcli.messages import LatentsDone, StageBegan, StepDone
from tests.engine.test_same_picture import gradient, pipeline_of
from tests.support import ASTRONAUT, RESIDENT, STREAMED, largest_difference, pictures, run_engine

LARGER = Hires(96, 128, 3, 0.7)
REQUEST = replace(ASTRONAUT, hires=LARGER)


def as_integers(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).astype(np.int32))


def theirs(model: Path, request: Request) -> torch.Tensor:
    """txt2img's latents or picture, enlarged, and img2img of that: in FP32 on the CPU."""
    hires, (_, second) = request.hires, request.rounds
    assert hires is not None
    pipeline, latent = pipeline_of(model), hires.upscaler == "latent"
    asked = {"prompt": request.prompt, "negative_prompt": request.negative, "guidance_scale": request.guidance}
    first = pipeline(
        **asked,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent" if latent else "pil",
    ).images
    if latent:
        larger = F.interpolate(first, size=(hires.height // 8, hires.width // 8), mode="bilinear")
    else:
        larger = first[0].resize((hires.width, hires.height), Image.Resampling.LANCZOS)
    again = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    drawn = again(
        **asked,
        image=larger,
        strength=hires.strength,
        num_inference_steps=second.steps,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="latent",
    ).images
    pixels = pipeline.vae.decode(drawn / pipeline.vae.config.scaling_factor).sample.detach()
    return ((pixels[0] / 2 + 0.5).clamp(0, 1) * 255).round().int().permute(1, 2, 0)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_it_is_what_diffusers_draws_in_two_pipelines(tiny: Path, upscaler: Upscaler) -> None:
    request = replace(REQUEST, hires=replace(LARGER, upscaler=upscaler))
    (ours,) = pictures(run_engine(tiny, request))
    assert ours.shape == (128, 96, 3)
    assert largest_difference(ours, theirs(tiny, request)) <= 1


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 20])
def test_all_of_its_steps_are_run(steps: int, strength: float) -> None:
    first, second = replace(REQUEST, hires=replace(LARGER, steps=steps, strength=strength)).rounds
    assert (first.steps_run, second.steps_run) == (4, steps)
    assert (second.width, second.height, second.seeds) == (96, 128, first.seeds)


@pytest.mark.every(2)
@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_every_plan_draws_the_same_and_a_run_goes_on_from_any_step(tiny: Path, upscaler: Upscaler) -> None:
    request = replace(REQUEST, count=2, steps=2, hires=replace(LARGER, steps=2, upscaler=upscaler))
    events = run_engine(tiny, request)
    whole = pictures(events)
    frugal = replace(STREAMED, guidance="sequential", give_back="piece", ways={"decode": "recomputed"})
    assert all(map(torch.equal, pictures(run_engine(tiny, request, frugal)), whole))

    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(one.image, one.round, one.step, one.count) for one in steps] == [
        *((image, 0, step, 4) for image in (0, 1) for step in (1, 2)),
        *((image, 1, step, 4) for image in (0, 1) for step in (3, 4)),
    ]
    for stopped in (3, 4, 7):  # in a round, between two, and with one picture done
        last = {one.image: one.payload for one in steps[:stopped]}
        resumed = run_engine(tiny, request, payload=b"".join(last.values()), checkpoints=tuple(map(len, last.values())))
        assert all(map(torch.equal, pictures(resumed), whole))
        assert sum(isinstance(event, StepDone) for event in resumed) == len(steps) - stopped
        done = [event.image for event in resumed if isinstance(event, LatentsDone)]
        assert done == [one.image for one in steps[:stopped] if one.step == one.count]


@pytest.mark.full
def test_img2img_is_enlarged_too(tiny: Path) -> None:
    init, request = gradient(64, 64).tobytes(), replace(REQUEST, strength=0.5, hires=replace(LARGER, steps=1))
    events = run_engine(tiny, request, payload=init)
    names = [event.name for event in events if isinstance(event, StageBegan)]
    assert names == ["encode_prompt", "encode_image", "denoise", "hires_denoise", "decode"]
    steps = [event for event in events if isinstance(event, StepDone)]
    alone = [
        event for event in run_engine(tiny, replace(request, hires=None), payload=init) if isinstance(event, StepDone)
    ]
    assert torch.equal(Checkpoint.from_bytes(steps[1].payload).latents, Checkpoint.from_bytes(alone[1].payload).latents)
    assert pictures(events)[0].shape == (128, 96, 3)


def test_what_a_prompt_says_goes_on_in_the_second_round() -> None:
    turns = turns_of(replace(REQUEST, negative="", prompt="a [red|blue] [fox:cat:0.5]"))
    said = [turns.pairs[number][1][0].text for number in turns.order]
    assert said == ["a red fox", "a blue fox", "a red cat", "a blue cat", "a red cat", "a blue cat", "a red cat"]


@pytest.mark.parametrize("size", [(96, 128), (101, 67)])
def test_lanczos_is_pillow_s(size: tuple[int, int]) -> None:
    picture = Image.effect_noise((48, 64), 80).convert("RGB")
    ours = lanczos(torch.from_numpy(np.asarray(picture).copy()).float(), size[1], size[0])
    assert (
        largest_difference(
            ours.round().clamp(0, 255).int(), as_integers(picture.resize(size, Image.Resampling.LANCZOS))
        )
        <= 1
    )


def test_it_is_drawn_anew_and_not_just_enlarged(tiny: Path) -> None:
    (drawn,) = pictures(run_engine(tiny, REQUEST, RESIDENT))
    (kept,) = pictures(run_engine(tiny, replace(REQUEST, hires=replace(LARGER, strength=0.0))))
    assert kept.shape == drawn.shape and largest_difference(drawn, kept) > 1
