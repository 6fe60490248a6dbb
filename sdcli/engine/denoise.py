"""The denoise loop: the only stage that runs many times, so the only weights worth keeping."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdcli.devices.base import Device
from sdcli.domain import Plan, Request
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.latents import Latents
from sdcli.engine.schedulers import begin_at, build_scheduler, step_options
from sdcli.engine.stage import Stage, blown_up, is_finite, not_finite
from sdcli.errors import NotFinite, SdcliError, echo
from sdcli.families.sd.denoiser import Denoiser, borrow_denoiser, prepare_denoiser
from sdcli.machine import cpu_packs_for
from sdcli.messages import LatentsDone, Message, Notice, StepDone
from sdcli.models.folder import Model
from sdcli.weights.copies import being_made
from sdcli.weights.prepared import open_copy

InitLatents = tuple[torch.Tensor, torch.Tensor]
"""Mean and deviation of an init image's latents, as the encoder gives them."""


def denoise(
    request: Request,
    model: Model,
    plan: Plan,
    context: torch.Tensor,
    init: InitLatents | None,
    device: Device,
    dtype: torch.dtype,
    resume: dict[int, Checkpoint],
    prepared: Path | None = None,
) -> Generator[Message, None, Latents]:
    """Yields events, a checkpoint a step; returns every picture's latents.

    `prepared` is where the denoiser's prepared copy is, or goes if the plan wants one.
    """
    stage = Stage("denoise", device)
    yield stage.began()
    finished = Latents(model.latent_channels, *model.latent_shape(request))
    sees = cpu_packs_for(*model.latent_shape(request), "fp32" if dtype is torch.float32 else "half")
    copy = open_copy(prepared) if prepared is not None else None
    if copy is None and prepared is not None and plan.prepared:
        if being_made(prepared):
            yield Notice("another run is preparing the denoiser: waiting for it")
        else:
            yield Notice(f"preparing the denoiser for this processor, once, in {echo(prepared.parent)}")
        try:
            copy = prepare_denoiser(model.unet, device, dtype, prepared, sees)
        except SdcliError as error:
            plan = _without_copy(plan, model, dtype, error)
            yield Notice(f"{error}; going on without a copy: each step takes longer")
    with borrow_denoiser(model.unet, plan, device, dtype, copy, sees) as denoiser:
        yield stage.loaded()
        for image, seed in enumerate(request.seeds):
            latents = yield from _draw(image, seed, request, model, plan, context, init, denoiser, resume.get(image))
            finished[image] = latents
            device.between_blocks()  # each picture begins with what the first one began with
    yield stage.ended()
    return finished


def _draw(
    image: int,
    seed: int,
    request: Request,
    model: Model,
    plan: Plan,
    context: torch.Tensor,
    init: InitLatents | None,
    denoiser: Denoiser,
    resume: Checkpoint | None,
) -> Generator[Message, None, torch.Tensor]:
    """One picture's latents. Noise and schedule live on the CPU in FP32: a seed is one picture on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler = build_scheduler(model.scheduler, request.steps)
    timesteps = scheduler.timesteps
    if init is None:
        latents = _noise(request, model, generator) * scheduler.init_noise_sigma
    else:
        latents, timesteps = _start_from(init, request, model, scheduler, generator)
    options = step_options(scheduler, generator)
    begin = 0
    if resume is not None:
        latents, begin = resume.restore(generator, scheduler), resume.step

    for step in range(begin, len(timesteps)):
        started, read = time.perf_counter(), denoiser.lent.bytes_read
        timestep = timesteps[step]
        sample = scheduler.scale_model_input(latents, timestep)
        told = _told(denoiser, sample, timestep, context, request.guidance, plan)
        output = _guided(told, request.guidance)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
        if not is_finite(latents):
            raise _who_is_to_blame(sample, told, output, step + 1, denoiser.dtype)
        seconds, read = time.perf_counter() - started, denoiser.lent.bytes_read - read
        checkpoint = Checkpoint.take(image, step + 1, len(timesteps), latents, generator, scheduler)
        yield StepDone(image, step + 1, len(timesteps), seconds, read, checkpoint.to_bytes())
    if begin == len(timesteps):  # no step has said so
        yield LatentsDone(image, Checkpoint.take(image, begin, begin, latents, generator, scheduler).to_bytes())
    return latents


def _told(
    denoiser: Denoiser, sample: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, guidance: float, plan: Plan
) -> tuple[torch.Tensor, ...]:
    """What the denoiser says for each row of the context: for the negative prompt, which comes first, and the prompt.

    Batched evaluates both at once, sequential one after the other in half the activations.
    """
    if len(context) == 1:
        return (denoiser(sample, timestep, context, guidance),)
    if plan.guidance == "batched":
        return denoiser(sample.expand(2, -1, -1, -1), timestep, context).chunk(2)
    return tuple(denoiser(sample, timestep, row[None]) for row in context)


def _guided(told: tuple[torch.Tensor, ...], guidance: float) -> torch.Tensor:
    """Classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598): u + g (c - u)."""
    if len(told) == 1:
        return told[0]
    unconditional, conditional = told
    return unconditional + guidance * (conditional - unconditional)


def _who_is_to_blame(
    sample: torch.Tensor, told: tuple[torch.Tensor, ...], output: torch.Tensor, step: int, dtype: torch.dtype
) -> NotFinite:
    """The error of a step that ended in NaN or infinity, by where they came up first."""
    if all(map(is_finite, told)):
        after = "the scheduler's settings" if is_finite(output) else "a --guidance that is too high"
        return NotFinite(f"NaN or infinity came out of step {step} of the stage denoise: {after} made them")
    return blown_up(sample, "denoise") or not_finite("denoise", dtype, "the denoiser's weights are damaged")


def _noise(request: Request, model: Model, generator: torch.Generator) -> torch.Tensor:
    """Standard normal latents, (1, channels, h, w)."""
    return torch.randn(1, model.latent_channels, *model.latent_shape(request), generator=generator)


def _without_copy(plan: Plan, model: Model, dtype: torch.dtype, error: SdcliError) -> Plan:
    """A plan of the same bytes that streams from the model's own file; raises `error` if there is none.

    The largest weight is there twice while it is used, cast and as the kernel lays it out: less of the others stays.
    """
    largest = max((info.numel for _, _, info in model.unet.weights().values()), default=0) * dtype.itemsize
    if plan.resident_bytes < 2 * largest:
        raise error
    return replace(plan, prepared=False, resident_bytes=plan.resident_bytes - 2 * largest)


def steps_run(steps: int, strength: float) -> int:
    """Denoising steps that img2img runs: `strength` of all, at least one unless the strength is 0.

    As in diffusers' StableDiffusionImg2ImgPipeline.get_timesteps, which however fails where it comes to none.
    """
    return min(steps, max(int(steps * strength), 1 if strength > 0 else 0))


def _start_from(
    init: InitLatents, request: Request, model: Model, scheduler: Any, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents of the init image with noise as of the first timestep that is run, and the timesteps to run.

    SDEdit (Meng et al. 2022, https://arxiv.org/abs/2108.01073). Draws from the generator as diffusers does:
    the sample of the latents first, then the noise.
    """
    mean, deviation = init
    timesteps = begin_at(scheduler, request.steps - steps_run(request.steps, request.strength or 0.0))
    sampled = mean + deviation * torch.randn(mean.shape, generator=generator)
    latents = sampled * model.vae.config.get("scaling_factor", 0.18215)
    if len(timesteps) == 0:
        return latents, timesteps
    return scheduler.add_noise(latents, _noise(request, model, generator), timesteps[:1]), timesteps
