"""The algorithm: encode the words, encode the init image, denoise, decode. One component at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from sdcli.devices.base import DTYPES, Device
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.decode import decode
from sdcli.engine.denoise import denoise
from sdcli.engine.encode import encode_image, encode_prompt
from sdcli.messages import Finished, Job, Message
from sdcli.models.folder import open_model


@torch.inference_mode()
def generate(job: Job, device: Device) -> Iterator[Message]:
    """Yields every event of the job, between heavy pieces of work, so that the caller may look, free or stop."""
    request, plan, dtype = job.request, job.plan, DTYPES[job.dtype]
    model = open_model(job.model, Path(job.model))
    pixels, resume = _unpack(job)

    if job.part == "pictures":
        latents = [resume[image].latents for image in range(request.count)]
    else:
        context = yield from encode_prompt(request, model, device, dtype)
        init = None
        if pixels is not None:
            init = yield from encode_image(pixels, model, plan, device, dtype)
        prepared = Path(job.prepared) if job.prepared else None
        latents = yield from denoise(request, model, plan, context, init, device, dtype, resume, prepared)
        del context, init
    del pixels, resume
    if job.part != "latents":
        yield from decode(latents, request, model, plan, device, dtype)
    yield Finished()


def _unpack(job: Job) -> tuple[torch.Tensor | None, dict[int, Checkpoint]]:
    """The init image as (1, 3, H, W) in -1…1, and the checkpoints to go on from, by image."""
    request, at = job.request, 0
    pixels = None
    if request.strength is not None and job.part != "pictures":
        at = request.height * request.width * 3
        levels = torch.frombuffer(bytearray(job.payload[:at]), dtype=torch.uint8)
        pixels = levels.view(1, request.height, request.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
    resume = {}
    for length in job.checkpoints:
        checkpoint = Checkpoint.from_bytes(job.payload[at : at + length])
        resume[checkpoint.image] = checkpoint
        at += length
    return pixels, resume
