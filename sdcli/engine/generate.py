"""The algorithm: encode the words, encode the init image, denoise, decode. One component at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from sdcli.components.schedulers import rehearse
from sdcli.devices.base import DTYPES, Device
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.decode import decode
from sdcli.engine.denoise import denoise, steps_run
from sdcli.engine.encode import encode_image, encode_prompt
from sdcli.engine.latents import Latents
from sdcli.messages import Finished, Job, Message
from sdcli.models.folder import Model, open_model


@torch.inference_mode()
def generate(job: Job, device: Device) -> Iterator[Message]:
    """Yields every event of the job, between heavy pieces of work, so that the caller may look, free or stop."""
    plan, dtype = job.plan, DTYPES[job.dtype]
    model = open_model(job.model, Path(job.model))
    request = replace(job.request, guidance_is_input=model.takes_guidance)
    if job.part == "pictures":
        latents = _finished(job, model)
        job = replace(job, payload=b"")  # of a thousand pictures it is 70 MiB
    else:
        given = request.strength
        rehearse(model.scheduler, request.steps, None if given is None else steps_run(request.steps, given))
        pixels, resume = _unpack(job)
        context = yield from encode_prompt(request, model, device, dtype)
        init = None
        if pixels is not None:
            init = yield from encode_image(pixels, model, plan, device, dtype)
        prepared = Path(job.prepared) if job.prepared else None
        latents = yield from denoise(request, model, plan, context, init, device, dtype, resume, prepared)
        del context, init, pixels, resume
    if job.part != "latents":
        yield from decode(latents, request, model, plan, device, dtype)
    yield Finished()


def _unpack(job: Job) -> tuple[torch.Tensor | None, dict[int, Checkpoint]]:
    """The init image as (1, 3, H, W) in -1…1, and the checkpoints to go on from, by image."""
    request, at = job.request, 0
    pixels = None
    if request.strength is not None:
        at = request.height * request.width * 3
        levels = torch.frombuffer(bytearray(job.payload[:at]), dtype=torch.uint8)
        pixels = levels.view(1, request.height, request.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, {checkpoint.image: checkpoint for checkpoint in _checkpoints(job, at)}


def _finished(job: Job, model: Model) -> Latents:
    """The latents of all pictures, from their checkpoints."""
    latents = Latents(model.latent_channels, *model.latent_shape(job.request))
    for checkpoint in _checkpoints(job, 0):
        latents[checkpoint.image] = checkpoint.latents
    return latents


def _checkpoints(job: Job, at: int) -> Iterator[Checkpoint]:
    """Those of the payload, from there on."""
    for length in job.checkpoints:
        yield Checkpoint.from_bytes(job.payload[at : at + length])
        at += length
