"""The algorithm: the stages of the model's family one after another, each with no more in memory than it needs.

For Stable Diffusion: encode the words, encode the init image, denoise, decode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from sdcli.devices.base import Device
from sdcli.domain import Component, Model
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.decode import decode
from sdcli.engine.denoise import denoise
from sdcli.engine.enlarge import ByLatents, Enlarged, to_latents, to_pixels
from sdcli.engine.latents import Latents
from sdcli.engine.once import once
from sdcli.engine.schedulers import rehearse
from sdcli.engine.work import State, Work
from sdcli.families.contract import Stage
from sdcli.families.rounds import stages_of
from sdcli.messages import Finished, Job, Message, StageBegan, StageLoaded
from sdcli.models.opened import open_model
from sdcli.models.stamps import require_same, require_unchanged, stamps_of
from sdcli.spool import Spool
from sdcli.weights.copies import in_use, is_made

_LATENTS = ("once", "steps", "to_pixels", "to_latents")
TIMES = {"pictures": ("pictures",), "latents": _LATENTS, "whole": (*_LATENTS, "pictures")}
"""The stages of each part of a job, by how often they run."""


@torch.inference_mode()
def generate(job: Job, device: Device) -> Iterator[Message]:
    """Yields every event of the job, between heavy pieces of work, so that the caller may look, free or stop.

    Before an event is told, the files that its stage reads are looked at: what came out of others is not handed out.
    """
    model = open_model(job.model.path, job.model)
    stages = {stage.name: stage for stage in _stages(model, job)}
    opened, parts = stamps_of(model), list[Component]()
    told = job.stamps or opened
    if job.part == "pictures":  # the others have been used
        used = tuple(f"{part}/" for stage in stages.values() for part in stage.parts)
        told, opened = ({name: s for name, s in stamps.items() if name.startswith(used)} for stamps in (told, opened))
    require_same(told, opened)
    prepared, plan = Path(job.prepared) if job.prepared else None, job.plan
    events = _draw(job, Work.of(job, model, device), [*stages.values()])
    del job  # of a thousand pictures its payload is 70 MiB
    try:
        with in_use(prepared) if prepared and (plan.prepared or is_made(prepared)) else nullcontext():
            for event in events:
                if isinstance(event, StageBegan):
                    parts = [model.parts[part] for part in stages[event.name].parts]
                require_unchanged(opened, *parts)
                yield event
                if (
                    isinstance(event, StageLoaded)
                    and stages[event.name].times == "steps"
                    and plan.residency == "resident"
                ):
                    parts = []  # all in memory
    except Exception:  # a file that changed is the reason for whatever came of it
        require_unchanged(opened, *parts)
        raise


def _stages(model: Model, job: Job) -> list[Stage]:
    """Those that the job's part has."""
    return [stage for stage in stages_of(model, job.request) if stage.times in TIMES[job.part]]


def _draw(job: Job, work: Work, stages: list[Stage]) -> Iterator[Message]:
    """Stage after stage: what one gives the next ones take."""
    rounds, state, resume = work.in_rounds, State(), dict[int, Checkpoint]()
    latents = Latents(*rounds[-1].latents_shape[1:])
    if job.part == "pictures":
        for checkpoint in _checkpoints(job, 0):
            latents[checkpoint.image] = checkpoint.latents
    else:
        for one in rounds:
            run = None if one.request.strength is None else one.request.steps_run
            rehearse(one.scheduler, one.request.steps, run, one.flow_times)
        state, resume = _unpacked(job)
    del job
    enlarged: Mapping[int, Enlarged] | None = None
    pixels = Spool()
    for stage in stages:
        work = rounds[stage.round]
        if stage.times == "once":
            state |= yield from once(work, stage, state)
        elif stage.times == "steps":
            state.pop("references", None)  # what was made of them is there
            if stage.round:
                enlarged = enlarged or ByLatents(latents, work)
                state.pop("pixels", None)
                state.pop("init", None)
            latents = Latents(*work.latents_shape[1:])
            yield from denoise(work, stage, state, resume, latents, enlarged)
        elif stage.times == "to_pixels":
            pixels = yield from to_pixels(work, stage, latents, rounds[-1])
        elif stage.times == "to_latents":
            enlarged = yield from to_latents(work, stage, pixels)
        else:
            state.clear()
            resume.clear()
            enlarged = None
            yield from decode(work, stage, latents)
    yield Finished()


def _unpacked(job: Job) -> tuple[State, dict[int, Checkpoint]]:
    """The init image, if there is one, as (1, 3, H, W) in -1…1, and its mask, if any, as (1, 1, H, W) of 0 and 1.

    Pictures to go by, of 0 to 255, and the checkpoints to go on from, by image.
    """
    request, state = job.request, State()
    references, at = _references(job)
    if references:
        state["references"] = references
    if request.strength is not None:
        begin, at = at, at + request.height * request.width * 3
        levels = torch.frombuffer(bytearray(job.payload[begin:at]), dtype=torch.uint8)
        rgb = levels.view(1, request.height, request.width, 3).permute(0, 3, 1, 2).float() / 127.5 - 1
        state["pixels"] = {"rgb": rgb}
    if request.masked:
        begin, at = at, at + request.height * request.width
        marks = torch.frombuffer(bytearray(job.payload[begin:at]), dtype=torch.uint8)
        state["pixels"]["mask"] = marks.view(1, 1, request.height, request.width).ne(0).float()
    return state, {checkpoint.image: checkpoint for checkpoint in _checkpoints(job, at)}


def _references(job: Job) -> tuple[dict[str, torch.Tensor], int]:
    """The pictures to go by, (1, 3, H, W) each, and where in the payload they end."""
    pictures, at = dict[str, torch.Tensor](), 0
    for index, (width, height) in enumerate(job.request.references):
        begin, at = at, at + height * width * 3
        levels = torch.frombuffer(bytearray(job.payload[begin:at]), dtype=torch.uint8)
        pictures[str(index)] = levels.view(1, height, width, 3).permute(0, 3, 1, 2)
    return pictures, at


def _checkpoints(job: Job, at: int) -> Iterator[Checkpoint]:
    """Those of the payload, from there on."""
    for length in job.checkpoints:
        yield Checkpoint.from_bytes(job.payload[at : at + length])
        at += length
