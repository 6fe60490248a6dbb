"""The last stage: latents to pixels."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdcli.components.autoencoder import borrow_decoder
from sdcli.devices.base import Device
from sdcli.domain import Plan, Request
from sdcli.engine.latents import Latents
from sdcli.engine.stage import Stage, require_finite
from sdcli.messages import Message, Notice, PictureDone
from sdcli.models.folder import Model


def decode(
    latents: Latents, request: Request, model: Model, plan: Plan, device: Device, dtype: torch.dtype
) -> Iterator[Message]:
    """Yields events, a picture as soon as it is decoded. What is not finite is done again in FP32."""
    stage = Stage("decode", device)
    yield stage.began()
    again, keep_maps = [], plan.vae_tile is None
    with borrow_decoder(model.vae, device, dtype, keep_maps=keep_maps) as run:
        yield stage.loaded()
        for image, seed in enumerate(request.seeds):
            pixels = run(latents[image])
            if torch.isfinite(pixels).all():
                yield _picture(image, seed, pixels)
            else:
                again.append((image, seed))
            device.between_blocks()
    if again:
        yield Notice("the decode was not finite: done again in fp32")
        with borrow_decoder(model.vae, device, torch.float32, keep_maps=False) as run:
            for image, seed in again:
                pixels = run(latents[image])
                require_finite(pixels, stage.name, "in fp32 as well; the autoencoder's weights are damaged")
                yield _picture(image, seed, pixels)
    yield stage.ended()


def _picture(image: int, seed: int, pixels: torch.Tensor) -> PictureDone:
    """(1, 3, h, w) in -1…1 to 8-bit RGB, rounded."""
    levels = (pixels[0] / 2 + 0.5).clamp_(0, 1).mul_(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous()
    height, width, _ = levels.shape
    return PictureDone(image, seed, width, height, levels.numpy().tobytes())
