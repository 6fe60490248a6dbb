"""The algorithm: encode the words, encode the init image, denoise, decode. One component at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from sdcli.devices.base import DTYPES, Device
from sdcli.domain import StageName
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.decode import decode
from sdcli.engine.denoise import denoise, steps_run
from sdcli.engine.encode import encode_image, encode_prompt
from sdcli.engine.latents import Latents
from sdcli.engine.schedulers import rehearse
from sdcli.families.sd.autoencoder import require_decoder
from sdcli.messages import Finished, Job, Message, StageBegan, StageLoaded
from sdcli.models.folder import Component, Model, open_model
from sdcli.models.stamps import require_same, require_unchanged, stamps_of
from sdcli.weights.copies import held, is_made

USES: dict[StageName, tuple[str, ...]] = {
    "encode_prompt": ("tokenizer", "text_encoder"),
    "encode_image": ("vae",),
    "denoise": ("unet",),
    "decode": ("vae",),
}
"""The components whose files each stage reads."""


@torch.inference_mode()
def generate(job: Job, device: Device) -> Iterator[Message]:
    """Yields every event of the job, between heavy pieces of work, so that the caller may look, free or stop.

    Before an event is told, the files that its stage reads are looked at: what came out of others is not handed out.
    """
    model = open_model(job.model, Path(job.model))
    opened, parts = stamps_of(model), list[Component]()
    told = job.stamps or opened
    if job.part == "pictures":  # the others have been used
        told, opened = ({name: s for name, s in stamps.items() if name.startswith("vae/")} for stamps in (told, opened))
    require_same(told, opened)
    prepared, plan = Path(job.prepared) if job.prepared else None, job.plan
    events = _draw(job, model, prepared, device)
    del job  # of a thousand pictures its payload is 70 MiB
    try:
        with held(prepared) if prepared and (plan.prepared or is_made(prepared)) else nullcontext():
            for event in events:
                if isinstance(event, StageBegan):
                    parts = [getattr(model, part) for part in USES[event.name]]
                require_unchanged(opened, *parts)
                yield event
                if isinstance(event, StageLoaded) and event.name == "denoise" and plan.residency == "resident":
                    parts = []  # all in memory
    except Exception:  # a file that changed is the reason for whatever came of it
        require_unchanged(opened, *parts)
        raise


def _draw(job: Job, model: Model, prepared: Path | None, device: Device) -> Iterator[Message]:
    plan, dtype = job.plan, DTYPES[job.dtype]
    request = replace(job.request, guidance_is_input=model.takes_guidance)
    if job.part == "pictures":
        latents = _finished(job, model)
        job = replace(job, payload=b"")
    else:
        given = request.strength
        require_decoder(model.vae)
        rehearse(model.scheduler, request.steps, None if given is None else steps_run(request.steps, given))
        pixels, resume = _unpack(job)
        context = yield from encode_prompt(request, model, device, dtype)
        init = None
        if pixels is not None:
            init = yield from encode_image(pixels, model, plan, device, dtype)
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
