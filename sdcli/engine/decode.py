"""The last stage: latents to pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdcli.engine.latents import Latents
from sdcli.engine.stage import Clock, blown_up, is_finite, not_finite
from sdcli.engine.work import Work
from sdcli.errors import NotFinite
from sdcli.families.contract import Stage
from sdcli.messages import Message, PictureDone


def decode(work: Work, stage: Stage, latents: Latents) -> Iterator[Message]:
    """Yields events, a picture as soon as it is decoded. If one is not finite the error comes after all the others."""
    clock = Clock(stage.name, work.device)
    yield clock.began()
    failure: NotFinite | None = None
    with getattr(work.network, stage.function)(work.model, work.request, work.borrow(stage)) as run:
        yield clock.loaded()
        for image in sorted(latents):
            pixels = run(latents[image])
            if is_finite(pixels):
                yield _picture(image, work.request.seeds[image], pixels)
            else:
                failure = blown_up(latents[image], stage.name) or not_finite(
                    stage.name, work.dtype, f"{stage.title}'s weights are damaged"
                )
            work.device.between_blocks()
    yield clock.ended()
    if failure is not None:
        raise failure


def _picture(image: int, seed: int, pixels: torch.Tensor) -> PictureDone:
    levels = levels_of(pixels)
    height, width, _ = levels.shape
    return PictureDone(image, seed, width, height, levels.numpy().tobytes())


def levels_of(pixels: torch.Tensor) -> torch.Tensor:
    """(1, 3, h, w) in -1…1 to 8-bit RGB, (h, w, 3), rounded."""
    return (pixels[0] / 2 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous()
