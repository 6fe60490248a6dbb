"""Previews of a run: about the picture, long before it is done, and without a say in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sdcli.devices import open_device
from sdcli.domain import Request
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.generate import generate
from sdcli.engine.preview import preview, seen_in
from sdcli.families.colours import DEMO, FLUX, FLUX2, SD, SDXL, Colours, colours_for
from sdcli.messages import Message, Preview, StepDone
from sdcli.models import reference
from tests.support import ASTRONAUT, job_of, pictures

MODEL = Path(reference.__file__).parent / reference.DEMO
FOX = Request("a fox on a blue background", "", 128, 128, 4, 5.0, 1, 1)


def run(model: Path, request: Request, every: int, **options: Any) -> list[Message]:
    device = open_device("cpu")
    device.prepare(None)
    return list(generate(job_of(model, request, preview_every=every, **options), device))


def pixels(shown: Preview) -> torch.Tensor:
    return torch.frombuffer(bytearray(shown.payload), dtype=torch.uint8).view(shown.height, shown.width, 3)


@pytest.mark.parametrize("sampler", [None, "DPM++ 2M", "UniPC", "DEIS", "PLMS", "DPM++ SDE", "LCM"])
def test_with_every_sampler_it_comes_to_look_like_the_picture(tiny: Path, sampler: str | None) -> None:
    request = replace(ASTRONAUT, steps=6, sampler=sampler, guidance=1.0)
    events = run(tiny, request, 1)
    shown = [pixels(event).float() for event in events if isinstance(event, Preview)]
    assert len(shown) == sum(isinstance(event, StepDone) for event in events)
    last = next(event for event in reversed(events) if isinstance(event, StepDone))
    told = preview(0, SD, Checkpoint.from_bytes(last.payload).latents)
    assert told is not None
    ends = (shown[-1] - pixels(told).float()).abs().mean()
    begins = (shown[0] - pixels(told).float()).abs().mean()
    assert ends < 10 and ends <= begins + 1


def test_the_built_in_model_is_recognised_half_way_and_drawn_the_same() -> None:
    (plain,) = pictures(run(MODEL, FOX, 0))
    events = run(MODEL, FOX, 2)
    assert torch.equal(pictures(events)[0], plain)
    first, last = (pixels(event).float() for event in events if isinstance(event, Preview))
    small = F.interpolate(plain.permute(2, 0, 1)[None].float(), size=first.shape[:2], mode="area")[0].permute(1, 2, 0)
    assert (first - small).abs().mean() < 40 and (last - small).abs().mean() < 25


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_what_a_scheduler_does_not_say_follows_from_the_model_s_output(kind: str) -> None:
    picture, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    scheduler = SimpleNamespace(
        alphas_cumprod=torch.linspace(0.99, 0.01, 1000), config=SimpleNamespace(prediction_type=kind)
    )
    share = float(scheduler.alphas_cumprod[700])
    latents = share**0.5 * picture + (1 - share) ** 0.5 * noise
    v = share**0.5 * noise - (1 - share) ** 0.5 * picture
    output = {"epsilon": noise, "v_prediction": v, "sample": picture}[kind]
    assert torch.allclose(seen_in(scheduler, None, latents, output, torch.tensor(700)), picture, atol=1e-5)


def test_a_flow_goes_straight() -> None:
    picture, noise = torch.randn(2, 1, 4, 8, 8).unbind()
    scheduler = SimpleNamespace(scale_noise=None, config=SimpleNamespace(num_train_timesteps=1000))
    latents = 0.75 * noise + 0.25 * picture
    assert torch.allclose(seen_in(scheduler, None, latents, noise - picture, torch.tensor(750.0)), picture, atol=1e-5)


@pytest.mark.parametrize(("channels", "colours"), [(4, SD), (8, DEMO), (16, FLUX), (128, FLUX2), (5, None)])
def test_the_map_is_told_by_the_channels(channels: int, colours: Colours | None) -> None:
    assert colours_for(channels, SD, DEMO, FLUX, FLUX2) is colours


@pytest.mark.parametrize("colours", [SD, SDXL, DEMO, FLUX, FLUX2])
def test_it_is_small_whatever_the_picture_is(colours: Colours) -> None:
    channels = len(colours.channels) * colours.patch**2
    shown = preview(3, colours, torch.zeros(1, channels, 130, 520 // colours.patch))
    assert shown is not None and max(shown.width, shown.height) <= 128 and shown.image == 3
    grey = [round(127.5 * (1 + level)) for level in colours.constant]
    assert (pixels(shown).int() - torch.tensor(grey)).abs().max() <= 1
    assert preview(0, colours, torch.full((1, channels, 8, 8), torch.nan)) is None
