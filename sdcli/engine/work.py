"""One job as the worker goes about it: what every stage is handed, instead of a parameter for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from sdcli.devices.base import DTYPES, Device
from sdcli.domain import Component, DtypeName, Model, Plan, Request, StageName
from sdcli.engine.schedulers import begin_at, build_scheduler
from sdcli.families.contract import FlowTimes, Geometry, Stage
from sdcli.families.registry import family_of
from sdcli.messages import Job
from sdcli.models.samplers import scheduler_of
from sdcli.uses import WeightRow
from sdcli.weights.borrow import Borrow

State = dict[str, dict[str, torch.Tensor]]
"""What stages have given, by name: each a mapping of tensors, whatever a family needs."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job without its payload, and the network that does it."""

    request: Request
    model: Model
    plan: Plan
    device: Device
    dtype_name: DtypeName
    tables: dict[StageName, tuple[WeightRow, ...]]
    prepared: Path | None
    network: Any
    keeps: bool = True
    """Whether what a stage gives may be kept for other runs, and taken from them."""
    preview_every: int = 0
    round: int = 0
    """Of the rounds of steps; the request is that round's."""
    steps_before: int = 0
    """That earlier rounds run, as prompts count them."""
    calls_before: int = 0
    """Of the denoiser, in earlier rounds and in later ones."""
    calls_after: int = 0
    saved: frozenset[int] = frozenset()
    """Pictures that are drawn already."""

    @classmethod
    def of(cls, job: Job, model: Model, device: Device) -> Work:
        """The job's, of an opened model."""
        family = family_of(model)
        request = replace(job.request, guidance_is_input=family.geometry(model).takes_guidance)
        prepared, network = Path(job.prepared) if job.prepared else None, import_module(family.network)
        return cls(
            request,
            model,
            job.plan,
            device,
            job.dtype,
            job.tables,
            prepared,
            network,
            job.keeps,
            job.preview_every,
            saved=frozenset(job.saved),
        )

    @property
    def in_rounds(self) -> tuple[Work, ...]:
        """The same in each round of its request."""
        rounds = self.request.rounds
        works = [replace(self, request=one, round=number) for number, one in enumerate(rounds)]
        calls = [work.calls for work in works] if len(rounds) > 1 else [0]
        return tuple(
            replace(
                work,
                steps_before=sum(one.steps_run for one in rounds[:number]),
                calls_before=sum(calls[:number]),
                calls_after=sum(calls[number + 1 :]),
            )
            for number, work in enumerate(works)
        )

    @property
    def calls(self) -> int:
        """Of the denoiser, that a picture takes in this round."""
        request = self.request
        scheduler = build_scheduler(self.scheduler, request.steps, self.flow_times)
        return len(begin_at(scheduler, request.steps - request.steps_run))

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return DTYPES[self.dtype_name]

    @property
    def scheduler(self) -> Component:
        """The model's own, or what was asked for in its place."""
        return scheduler_of(self.model, self.request)

    @property
    def geometry(self) -> Geometry:
        """Of the model's latents."""
        return family_of(self.model).geometry(self.model)

    @property
    def flow_times(self) -> FlowTimes | None:
        """Of a flow model, when its steps are."""
        times_of = self.geometry.flow_times
        return None if times_of is None else times_of(self.request)

    @property
    def latents_shape(self) -> tuple[int, int, int, int]:
        """Of one picture: (1, channels, h, w)."""
        geometry = self.geometry
        return 1, geometry.latent_channels, *geometry.latent_shape(self.request)

    def borrow(self, stage: Stage) -> Borrow:
        """What the stage computes with, and borrows its weights by."""
        repeats = stage.times == "steps"
        return Borrow(
            self.device,
            self.dtype,
            table=self.tables.get(stage.name, ()),
            way=self.plan.ways.get(stage.name, ""),
            scratch_bytes=self.plan.attention_scratch_bytes if repeats else 0,
            give_back=self.plan.give_back if repeats else "stage",
            repeats=repeats,
        )
