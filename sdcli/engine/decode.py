"""The last stage: latents to pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdcli.devices.base import Device
from sdcli.domain import Plan, Request
from sdcli.engine.latents import Latents
from sdcli.engine.stage import Stage, blown_up, is_finite, not_finite
from sdcli.errors import NotFinite
from sdcli.families.sd.autoencoder import borrow_decoder
from sdcli.messages import Message, PictureDone
from sdcli.models.folder import Model


def decode(
    latents: Latents, request: Request, model: Model, plan: Plan, device: Device, dtype: torch.dtype
) -> Iterator[Message]:
    """Yields events, a picture as soon as it is decoded. If one is not finite the error comes after all the others."""
    stage = Stage("decode", device)
    yield stage.began()
    failure: NotFinite | None = None
    with borrow_decoder(model.vae, device, dtype, keep_maps=plan.vae_tile is None) as run:
        yield stage.loaded()
        for image in sorted(latents):
            pixels = run(latents[image])
            if is_finite(pixels):
                yield _picture(image, request.seeds[image], pixels)
            else:
                failure = blown_up(latents[image], stage.name) or not_finite(
                    stage.name, dtype, "the autoencoder's weights are damaged"
                )
            device.between_blocks()
    yield stage.ended()
    if failure is not None:
        raise failure


def _picture(image: int, seed: int, pixels: torch.Tensor) -> PictureDone:
    """(1, 3, h, w) in -1…1 to 8-bit RGB, rounded."""
    levels = (pixels[0] / 2 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width, _ = levels.shape
    return PictureDone(image, seed, width, height, levels.numpy().tobytes())
