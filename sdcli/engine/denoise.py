"""The denoise loop: the only stage that runs many times, so the only weights worth keeping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from sdcli.domain import Guidance
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.enlarge import Enlarged
from sdcli.engine.latents import Latents
from sdcli.engine.masking import Outside, beside_rows, latent_mask, told_of_mask
from sdcli.engine.preview import preview, seen_in
from sdcli.engine.schedulers import begin_at, build_scheduler, from_noise, from_picture, model_input, step_options
from sdcli.engine.stage import Clock, blown_up, is_finite, not_finite
from sdcli.engine.work import State, Work
from sdcli.errors import NotFinite, SdcliError, echo
from sdcli.families.contract import Stage
from sdcli.messages import LatentsDone, Message, Notice, Preview, StepDone
from sdcli.units import format_size
from sdcli.uses import WeightRow
from sdcli.weights.borrow import Borrow
from sdcli.weights.copies import being_made
from sdcli.weights.lend import Table, packer
from sdcli.weights.packed import can_map
from sdcli.weights.prepared import make_copy, open_copy

Denoiser = Callable[..., torch.Tensor]
"""(latents, timestep, conditioning, guidance) to the model's output, on the CPU in FP32. `lent` counts its reading."""

Conditioning = Mapping[str, torch.Tensor]
"""What a step goes by besides latents and time. Each tensor has a row for each pass of guidance, the negative first."""


def denoise(
    work: Work,
    stage: Stage,
    state: State,
    resume: Mapping[int, Checkpoint],
    finished: Latents,
    enlarged: Mapping[int, Enlarged] | None = None,
) -> Iterator[Message]:
    """Yields events, a checkpoint a step; puts every picture's latents into `finished`.

    A second round goes on from those that are `enlarged`.
    """
    clock, borrow = Clock(stage.name, work.device), work.borrow(stage)
    yield clock.began()
    yield from _find_copy(work, stage, borrow)
    with getattr(work.network, stage.function)(work.model, work.request, borrow) as denoiser:
        yield clock.loaded()
        for image, seed in enumerate(work.request.seeds):
            if image in work.saved:
                continue
            begun = resume.get(image)
            if begun is not None and begun.round > work.round:
                continue
            if begun is not None and begun.round < work.round:
                begun = None
            larger = None
            if enlarged is not None:
                larger = enlarged[image] if begun is None else Enlarged(begun.latents, begun.generator)
            finished[image] = yield from _draw(work, image, seed, state, denoiser, begun, larger)
            work.device.between_blocks()  # each picture begins with what the first one began with
    yield clock.ended()


def _draw(
    work: Work,
    image: int,
    seed: int,
    state: State,
    denoiser: Any,
    resume: Checkpoint | None,
    enlarged: Enlarged | None,
) -> Generator[Message, None, torch.Tensor]:
    """One picture's latents. Noise and schedule live on the CPU in FP32: a seed is one picture on every device."""
    request, outside = work.request, None
    generator = torch.Generator("cpu").manual_seed(seed)
    scheduler = build_scheduler(work.scheduler, request.steps, work.flow_times)
    timesteps = scheduler.timesteps
    if enlarged is not None:
        if enlarged.generator is not None:
            generator.set_state(enlarged.generator)
        timesteps = begin_at(scheduler, request.steps - request.steps_run)
        noise = _noise(work, generator)
        latents = from_picture(scheduler, enlarged.latents, noise, timesteps) if len(timesteps) else enlarged.latents
    elif "init" in state:
        latents, timesteps, outside = _start_from(work, state, scheduler, generator)
    else:
        latents = from_noise(scheduler, _noise(work, generator))
    beside = told_of_mask(work, state, generator)
    options = step_options(scheduler, generator)
    if hasattr(denoiser, "foresee"):  # what depends on the time alone is computed for several steps at once
        denoiser.foresee(timesteps)
    begin = 0
    if resume is not None:
        resume.require_sound(latents.shape, len(timesteps))
        latents, begin = resume.restore(generator, scheduler), resume.step

    for step in range(begin, len(timesteps)):
        started, read = time.perf_counter(), denoiser.lent.bytes_read
        timestep = timesteps[step]
        conditioning = beside_rows(conditioning_at(state, work.steps_before + step // scheduler.order), beside)
        sample = model_input(scheduler, latents, timestep)
        told = _told(denoiser, sample, timestep, conditioning, request.guidance, work.plan.guidance)
        output = _guided(told, request.guidance)
        before, stepped = latents, scheduler.step(output, timestep, latents, **options)
        latents = stepped.prev_sample
        shown = _preview(work, image, step, (scheduler, stepped, before, output, timestep))
        del before, stepped
        if outside is not None:
            latents = outside.put_back(latents, scheduler, timesteps[step + 1 : step + 2])
        if not is_finite(latents):
            raise _who_is_to_blame(sample, told, output, step + 1, work.dtype)
        seconds, read = time.perf_counter() - started, denoiser.lent.bytes_read - read
        checkpoint = Checkpoint.take(image, step + 1, len(timesteps), latents, generator, scheduler, work.round)
        at, of = work.calls_before + step + 1, work.calls_before + len(timesteps) + work.calls_after
        if shown is not None:
            yield shown
        yield StepDone(image, at, of, seconds, read, checkpoint.to_bytes(), work.round)
    if begin == len(timesteps) and not work.calls_after:  # no step has said so
        last = Checkpoint.take(image, begin, begin, latents, generator, scheduler, work.round)
        yield LatentsDone(image, last.to_bytes())
    return latents


def conditioning_at(state: State, step: int) -> Conditioning:
    """That of a step, counted from 0: what a prompt says may change from step to step.

    A family that has several gives the others as `conditioning 1` and so on, and in `turns` their `order`: which one
    each step has. A scheduler's steps beyond those have the last one's.
    """
    order = state["turns"]["order"] if "turns" in state else None
    number = 0 if order is None else int(order[min(step, len(order) - 1)])
    return state[f"conditioning {number}" if number else "conditioning"]


def _preview(work: Work, image: int, step: int, about: tuple[Any, ...]) -> Preview | None:
    """A preview of the step, counted from 0, where one is due: every so many steps."""
    every, colours = work.preview_every, work.geometry.colours if work.preview_every else None
    if colours is None or (work.calls_before + step + 1) % every:
        return None
    return preview(image, colours, seen_in(*about))


def _told(
    denoiser: Denoiser,
    sample: torch.Tensor,
    timestep: torch.Tensor,
    conditioning: Conditioning,
    guidance: float,
    passes: Guidance,
) -> tuple[torch.Tensor, ...]:
    """What the denoiser says for each row of the conditioning: first the negative prompt's, then the prompt's.

    Batched evaluates both at once, sequential one after the other in half the activations.
    """
    rows = max(map(len, conditioning.values()))
    if rows == 1:
        return (denoiser(sample, timestep, conditioning, guidance),)
    if passes == "batched":
        return denoiser(sample.expand(rows, -1, -1, -1), timestep, conditioning).chunk(rows)
    each = [{name: tensor[row : row + 1] for name, tensor in conditioning.items()} for row in range(rows)]
    return tuple(denoiser(sample, timestep, row) for row in each)


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


def _find_copy(work: Work, stage: Stage, borrow: Borrow) -> Iterator[Message]:
    """Have the stage borrow from the prepared copy of its weights, which is made first if the plan wants one."""
    folder, (part, *_) = work.prepared, stage.lends
    if folder is None:
        return
    borrow.prepared = open_copy(folder)
    if borrow.prepared is not None or not work.plan.prepared or not can_map():
        return
    if being_made(folder):
        yield Notice("another run is preparing the denoiser: waiting for it")
    else:
        size_bytes = sum(math.prod(row.shape) for row in borrow.table if row.use == "matrix") * work.dtype.itemsize
        size = format_size(size_bytes)
        yield Notice(f"preparing the denoiser for this processor, once: {size} in {echo(folder.parent)}")
    component = work.model.parts[part]
    module = work.network.build(component)
    try:
        with packer(module, component, borrow.table, work.device, work.dtype) as (names, pack):
            borrow.prepared = make_copy(folder, names, pack) if names else None
    except SdcliError as error:
        borrow.table = _without_copy(work, borrow.table, error)
        yield Notice(f"{error}; going on without a copy: each step takes longer")


def _without_copy(work: Work, table: Table, error: SdcliError) -> Table:
    """A table of the same bytes that streams from the model's own file; raises `error` if there is none.

    The largest weight is there twice while it is used, cast and as the kernel lays it out: less of the others stays.
    """
    item, matrices = work.dtype.itemsize, [row for row in table if row.use == "matrix"]
    lacking = 2 * max((math.prod(row.shape) for row in matrices), default=0) * item
    if work.plan.resident_bytes < lacking:
        raise error
    going = set[WeightRow]()
    for row in reversed(matrices):
        if row.stays and lacking > 0:
            lacking -= math.prod(row.shape) * item
            going.add(row)
    return [replace(row, stays=False) if row in going else row for row in table]


def _start_from(
    work: Work, state: State, scheduler: Any, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, Outside | None]:
    """Latents of the init image with noise as of the first timestep that is run, and the timesteps to run.

    And what is outside the mask, where there is one that the model is not told of. At a strength of 1 an inpainting
    begins with noise alone, as in diffusers.

    SDEdit (Meng et al. 2022, https://arxiv.org/abs/2108.01073). Draws from the generator as diffusers does:
    the sample of the latents first, then the noise.
    """
    request = work.request
    timesteps = begin_at(scheduler, request.steps - request.steps_run)
    is_told, anew = "surroundings" in state, request.strength == 1
    if is_told and anew:
        return from_noise(scheduler, _noise(work, generator)), timesteps, None
    latents = work.network.start(work.model, state["init"], generator)
    if len(timesteps) == 0:
        return latents, timesteps, None
    noise = _noise(work, generator)
    if request.masked and anew:
        noisy = from_noise(scheduler, noise)
    else:
        noisy = from_picture(scheduler, latents, noise, timesteps)
    outside = Outside(latents, noise, latent_mask(work, state)) if request.masked and not is_told else None
    return noisy, timesteps, outside


def _noise(work: Work, generator: torch.Generator) -> torch.Tensor:
    """Standard normal latents of one picture."""
    return torch.randn(work.latents_shape, generator=generator)
