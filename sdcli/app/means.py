"""What plans of a task go by: counts of its network, what this machine can do, and what it has shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdcli import machine
from sdcli.app.counts import CountBook
from sdcli.app.kinds import kind_of_run
from sdcli.app.known import remainder_key, room_for_files, shipped_remainder, speed_of
from sdcli.app.record import Task
from sdcli.domain import Plan, StageName
from sdcli.errors import WillNotFit
from sdcli.families.registry import family_of
from sdcli.families.rounds import stages_of
from sdcli.models.disks import model_in_memory
from sdcli.plan.baselines import (
    build_note,
    hopeless_bytes,
)
from sdcli.plan.bytes import Subject
from sdcli.plan.ceiling import kernel_share_bytes
from sdcli.plan.paces import Pace, remembered_pace
from sdcli.plan.planner import (
    MARGIN_BYTES,
    Means,
    Planned,
    fastest_plan,
    make_plan,
    smallest_limit_bytes,
    smallest_plan,
)
from sdcli.plan.remainder import WITH_AVX2, WITH_AVX512
from sdcli.plan.remainders import Source, corrected, remembered_remainder
from sdcli.plan.seconds import Speed
from sdcli.plan.table import table_of
from sdcli.settings import Machine, Profile
from sdcli.units import GIB
from sdcli.uses import MapShape, WeightRow
from sdcli.weights.copies import is_made, lack_of_room, place_of_copy

STREAMING_RUN_BYTES = GIB // 2
"""What a run takes that keeps no weights, or thereabouts."""


class Prospect:
    """A task with counts of its network: what is planned for it, and what its workers are told.

    Whatever needs a count that nobody has made raises Uncounted.
    """

    def __init__(self, task: Task, posed: Profile | None = None) -> None:
        """With the profile `posed` as another machine is planned for, with its speed instead of this one's."""
        self.task, self.posed, self.book = task, posed, CountBook(task.model, task.device, task.dtype)
        stages, self._geometry = stages_of(task.model, task.request), family_of(task.model).geometry(task.model)
        previews, on_gpu = bool(task.preview_every), task.device != "cpu"
        adapted = any(
            task.model.parts[part].adapters for stage in stages for part in stage.lends if stage.times == "steps"
        )
        self.subject = Subject(task.request, task.dtype, stages, self._geometry, self.book, previews, on_gpu, adapted)
        self._copy: list[Path | None] = []
        self._copied_before = False
        self._lacking_bytes = 0
        """By so much a stage took more than was predicted, when it crossed the ceiling."""

    def plan(self, baseline_bytes: int) -> Planned:
        """The fastest plan under the task's ceiling. Raises WillNotFit, which says what would fit."""
        _ = self.layout.counts  # which the tables will need
        planned = make_plan(self.subject, self._room_bytes, baseline_bytes, self._means()[0])
        return self._as_known(planned)

    def plan_that_fits(self, baseline_bytes: int) -> Planned | None:
        """The same; None where nothing fits."""
        _ = self.layout.counts
        planned = fastest_plan(self.subject, self._room_bytes, baseline_bytes, self._means()[0])
        return planned and self._as_known(planned)

    @property
    def _room_bytes(self) -> int | None:
        """What a plan may take: the ceiling, or without one all that a GPU has, which nothing can go beyond."""
        limit_bytes = self.task.ceiling.limit_bytes
        on_gpu = self.task.device == "cuda" and self.posed is None
        return machine.gpu_memory_bytes() if limit_bytes is None and on_gpu else limit_bytes

    def _as_known(self, planned: Planned) -> Planned:
        """With what is to be said of it, and with the seconds of a run of the same kind."""
        pace = self.pace(planned.plan)
        planned = planned if pace is None else replace(planned, step_s=pace.step_s)
        return planned.because(self.lack_of_copy(planned.plan))

    def pace(self, plan: Plan) -> Pace | None:
        """That of a run of the same kind by the same plan on this machine; none of runs of several rounds."""
        return None if self.posed or self.task.request.hires else remembered_pace(kind_of_run(self.task, plan))

    def smaller(self, planned: Planned, stage: StageName, footprint_bytes: int | None) -> Planned | None:
        """The fastest plan that needs less in the stage where the ceiling was crossed, or the least; None if none does.

        What was measured over what was predicted is left free from now on, and at each crossing twice as much: a worker
        that is killed as it crosses does not show how far it would have gone.
        """
        limit_bytes = self.task.ceiling.limit_bytes
        if limit_bytes is None:
            return None
        had = _need(planned, stage)
        over = limit_bytes // 16 if footprint_bytes is None else footprint_bytes - had
        self._lacking_bytes = max(2 * self._lacking_bytes, over, limit_bytes // 32)
        try:
            smaller = self.plan(planned.baseline_bytes)
        except WillNotFit:
            smaller = smallest_plan(self.subject, planned.baseline_bytes, self._means()[0])
        return smaller if _need(smaller, stage) < had else None

    def least_limit_bytes(self, baseline_bytes: int) -> int:
        """The least ceiling under which the task runs."""
        return smallest_limit_bytes(self.subject, baseline_bytes, self._means()[0])

    @property
    def remainder_from(self) -> Source:
        """What the prediction of kernels and gaps goes by."""
        return self._means()[1]

    def tables(self, plan: Plan) -> dict[StageName, tuple[WeightRow, ...]]:
        """The table of weights of each stage, as the plan has it."""
        tables = {}
        for stage in self.subject.stages:
            count, dtype = self.subject.counts[stage.name], self.task.dtype
            if stage.times == "steps":
                layout, samples = self.layout.counts[stage.function], self._sees[0]
                tables[stage.name] = table_of(
                    count, dtype, plan.resident_bytes, layout, samples, self.subject.slices_stay
                )
            else:
                tables[stage.name] = table_of(count, dtype)
        return tables

    @property
    def copy(self) -> Path | None:
        """The place of the prepared copy of the weights that every step uses, there or to be made: decided once."""
        if self.posed is not None:
            return None
        if not self._copy:
            component = self.task.model.parts[self.subject.steps.lends[0]]
            size_bytes = self.subject.weights.matrices_bytes
            device, dtype = self.task.device, self.task.dtype
            wanted = size_bytes and self.task.prepares
            self._copy.append(place_of_copy(component, device, dtype, self._sees, size_bytes) if wanted else None)
            self._copied_before = self.is_copied
        return self._copy[0]

    @property
    def is_copied(self) -> bool:
        """Whether that is there by now."""
        return self.copy is not None and is_made(self.copy)

    @property
    def was_copied_meanwhile(self) -> bool:
        """Whether it is, and was not when its place was decided."""
        return self.is_copied and not self._copied_before

    def lack_of_copy(self, plan: Plan) -> str:
        """Why this plan streams from the model's own file, where a disk with more room would help; else empty."""
        if self.posed or self.copy is not None or not self.task.prepares or plan.residency == "resident":
            return ""
        return lack_of_room(self.task.device, self.task.dtype, self.subject.weights.matrices_bytes)

    @property
    def known_copy(self) -> Path | None:
        """The same, None as long as nobody has asked for it."""
        return self._copy[0] if self._copy else None

    def frugal_decode(self, plan: Plan, fresh: bool) -> Plan:
        """The same with pictures decoded in the least memory, if `fresh` in a worker of its own."""
        pictures = [stage for stage in self.subject.stages if stage.times == "pictures" and stage.ways]
        counts = self.subject.counts
        ways = {
            stage.name: min(stage.ways, key=lambda way: counts[stage.name].ways[way].live_bytes) for stage in pictures
        }
        return replace(plan, ways={**plan.ways, **ways}, fresh_decode=fresh or plan.fresh_decode)

    @property
    def layout(self) -> Subject:
        """The same request, of few words, at the size of picture that weights are laid out for."""
        _, height, width = self._sees
        factor = self._geometry.latent_factor
        sized = replace(
            self.task.request, height=height * factor, width=width * factor, prompt="", negative="", hires=None
        )
        return replace(self.subject, request=sized)

    @property
    def _sees(self) -> MapShape:
        """Samples, height and width of the latents that weights are laid out for."""
        height, width = self._geometry.latent_shape(self.task.request.rounds[-1])
        on_cpu = self.task.device == "cpu"
        return machine.cpu_packs_for(height, width, self.task.dtype) if on_cpu else (1, height, width)

    @property
    def speed(self) -> Speed:
        """That plans go by."""
        if self.posed is None:
            return speed_of(self.task)
        told = self.posed.machine
        return Speed(told.flops, told.cast_bytes, told.cast_bytes)

    def _means(self) -> tuple[Means, Source]:
        task = self.task
        if self.posed is not None:
            return self._means_elsewhere(self.posed.machine)
        heap_bytes = max(way.heap_bytes for way in self.subject.counts[self.subject.steps.name].ways.values())
        remainder, source = corrected(*shipped_remainder(task), remembered_remainder(remainder_key(task)), heap_bytes)
        kernel_bytes = 0 if task.device == "cuda" else kernel_share_bytes(task.ceiling)
        means = Means(
            speed=speed_of(task),
            prepared=self.copy is not None,
            making=self.copy is not None and not self.is_copied,
            keeps_copy=self.subject.weights.matrices_bytes <= room_for_files(STREAMING_RUN_BYTES),
            fused=machine.attends_fused(task.device, task.dtype),
            heap=task.device == "cpu",
            batches=task.device != "cpu" or machine.cpu_batches(),
            remainder=remainder,
            note=build_note(task.device),
            in_memory=model_in_memory(task.model),
            margin_bytes=MARGIN_BYTES + kernel_bytes + self._lacking_bytes,
            kernel_limit_bytes=None if task.device == "cuda" else task.ceiling.kernel_limit_bytes,
        )
        return means, source

    def _means_elsewhere(self, told: Machine) -> tuple[Means, Source]:
        """Of another machine, whose disk has no prepared copy. Attention goes as where its network is counted."""
        with_avx2 = told.kernels == "avx2" and self.task.dtype == "fp32"
        shipped = WITH_AVX2 if with_avx2 else WITH_AVX512
        remainder, source = corrected(shipped, with_avx2, None, 0)
        fused = machine.attends_fused(self.task.device, self.task.dtype)
        return Means(speed=self.speed, fused=fused, batches=not with_avx2, remainder=remainder), source


def is_hopeless(task: Task) -> bool:
    """Whether no worker need be asked what it weighs."""
    limit_bytes = task.ceiling.limit_bytes
    return limit_bytes is not None and limit_bytes <= hopeless_bytes(task.device)


def _need(planned: Planned, stage: StageName) -> int:
    """Of a stage; the highest one's where it has none, as before the first."""
    return next((need.peak_bytes for need in planned.needs if need.name == stage), planned.peak_bytes)
