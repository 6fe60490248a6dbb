"""What plans of a task go by, and what its run teaches for the next: the one module of app/ that asks plan/.

Counts of its network, what this machine can do, and what it has shown.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import replace
from pathlib import Path

from sdcli import machine
from sdcli.app.counts import CountBook
from sdcli.app.kinds import kind_of_run
from sdcli.app.record import RunRecord, Task
from sdcli.domain import Plan, StageName
from sdcli.errors import WillNotFit
from sdcli.families.registry import family_of
from sdcli.families.rounds import stages_of
from sdcli.messages import Ready
from sdcli.models.disks import model_in_memory
from sdcli.plan.baselines import (
    VARYING_BYTES,
    build_note,
    hopeless_bytes,
    remember_baseline,
    remembered_baseline,
    typical_bytes,
)
from sdcli.plan.bytes import Subject, way_of
from sdcli.plan.ceiling import kernel_share_bytes
from sdcli.plan.meter import TreeMeter
from sdcli.plan.paces import Pace, remember_pace, remembered_pace
from sdcli.plan.planner import (
    MARGIN_BYTES,
    Means,
    Planned,
    fastest_plan,
    make_plan,
    smallest_limit_bytes,
    smallest_plan,
)
from sdcli.plan.remainder import WITH_AVX2, WITH_AVX512, WITH_AVX512_IN_FP32, Remainder
from sdcli.plan.remainders import Seen, Source, corrected, remember_remainder, remembered_remainder
from sdcli.plan.seconds import Speed, learned
from sdcli.plan.speeds import remember_speed, remembered_speed, typical_speed
from sdcli.plan.table import table_of
from sdcli.settings import Machine, Profile
from sdcli.units import MIB
from sdcli.uses import MapShape, WeightRow
from sdcli.weights.copies import is_made, lack_of_room, place_of_copy

CUDA_KERNELS_BYTES = 176 * MIB
"""What the driver loads and libraries reserve when their kernels first run (benchmarks/RESULTS.md)."""


class Prospect:
    """A task with counts of its network: what is planned for it, and what its workers are told.

    Whatever needs a count that nobody has made raises Uncounted.
    """

    def __init__(self, task: Task, posed: Profile | None = None) -> None:
        """With the profile `posed` as another machine is planned for, with its speed instead of this one's."""
        self.task, self.posed, self.book = task, posed, CountBook(task.model, task.device, task.dtype)
        stages, self._geometry = stages_of(task.model, task.request), family_of(task.model).geometry(task.model)
        self.subject = Subject(task.request, task.dtype, stages, self._geometry, self.book, bool(task.preview_every))
        self._copy: list[Path | None] = []
        self._lacking_bytes = 0
        """By so much a stage took more than was predicted, when it crossed the ceiling."""

    def plan(self, baseline_bytes: int) -> Planned:
        """The fastest plan under the task's ceiling. Raises WillNotFit, which says what would fit."""
        _ = self.layout.counts  # which the tables will need
        planned = make_plan(self.subject, self.task.ceiling.limit_bytes, baseline_bytes, self._means()[0])
        return self._as_known(planned)

    def plan_that_fits(self, baseline_bytes: int) -> Planned | None:
        """The same; None where nothing fits."""
        _ = self.layout.counts
        planned = fastest_plan(self.subject, self.task.ceiling.limit_bytes, baseline_bytes, self._means()[0])
        return planned and self._as_known(planned)

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

        What was measured over what was predicted is left free from now on.
        """
        limit_bytes = self.task.ceiling.limit_bytes
        if limit_bytes is None:
            return None
        had = _need(planned, stage)
        over = limit_bytes // 16 if footprint_bytes is None else footprint_bytes - had
        self._lacking_bytes = max(self._lacking_bytes, over)
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
                tables[stage.name] = table_of(count, dtype, plan.resident_bytes, layout, samples)
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
        return self._copy[0]

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
            return _speed_of(self.task)
        told = self.posed.machine
        return Speed(told.flops, told.cast_bytes, told.cast_bytes)

    def _means(self) -> tuple[Means, Source]:
        task = self.task
        if self.posed is not None:
            return self._means_elsewhere(self.posed.machine)
        heap_bytes = max(way.heap_bytes for way in self.subject.counts[self.subject.steps.name].ways.values())
        remainder, source = corrected(*_shipped(task), remembered_remainder(_key(task)), heap_bytes)
        kernel_bytes = 0 if task.device == "cuda" else kernel_share_bytes(task.ceiling)
        means = Means(
            speed=_speed_of(task),
            prepared=self.copy is not None,
            making=self.copy is not None and not is_made(self.copy),
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


def held_bytes(task: Task) -> int:
    """What the host has of the picture that what is drawn is laid over: part of the memory that the ceiling covers."""
    canvas = task.canvas
    if canvas is None or task.device == "cuda":
        return 0
    return len(canvas.pixels) + len(canvas.share) + len(task.mask)


def known_baseline(task: Task) -> int | None:
    """What earlier runs measured before anything was loaded, and what this host has besides; None before the first."""
    remembered = remembered_baseline(task.device)
    return None if remembered is None else remembered + held_bytes(task)


def typical_baseline(task: Task) -> int:
    """The same before a first run."""
    return typical_bytes(task.device) + held_bytes(task)


def measured_baseline(task: Task, ready: Ready) -> int:
    """What is in use before anything is loaded, of the memory that the ceiling covers; remembered for the next run."""
    if task.device == "cuda":
        measured = ready.device_peak_bytes + CUDA_KERNELS_BYTES
    else:
        measured = TreeMeter(os.getpid()).footprint_bytes()
    remember_baseline(task.device, measured - held_bytes(task))
    return measured


def settled_baseline(task: Task, known_bytes: int | None, measured_bytes: int) -> int:
    """What a plan told beforehand went by, so that the plan stays the same, unless more was measured now."""
    told = known_bytes or min(typical_baseline(task), measured_bytes)
    return told if measured_bytes <= told + VARYING_BYTES else measured_bytes


def unknown_speed(task: Task) -> bool:
    """Whether nobody has found out yet how fast this machine computes in the task's type."""
    return remembered_speed(task.device, task.dtype, task.threads) is None


def learn_flops(task: Task, flops: float | None) -> None:
    """Remember what a worker found out, if it was asked."""
    if flops is not None:
        remember_speed(task.device, task.dtype, replace(_speed_of(task), flops=flops), task.threads)


def learn_from(record: RunRecord, prospect: Prospect) -> None:
    """Correct the speeds and the remainder that plans go by. The first step compiles kernels, and tells of them."""
    task, planned, last = record.task, record.planned, len(record.task.request.rounds) - 1
    seconds = [step.seconds for step in record.steps if step.round == last][1:]
    if planned is None or not seconds or record.degraded or set(record.denoised_in.values()) != {task.dtype}:
        return
    took, speed = statistics.median(seconds), _speed_of(task)
    now = learned(speed, prospect.subject.of_round(last), planned.plan, took)
    if now != speed:
        remember_speed(task.device, task.dtype, now, task.threads)
    if not last:
        _learn_pace(record, planned.plan, took)
    steps = next((stage for stage in record.stages if stage.name == prospect.subject.steps.name), None)
    if steps is not None and task.device == "cpu" and not last:  # a second round finds what the first one left
        _learn_remainder(prospect, planned, record.baseline_bytes, steps.peak_bytes)


def _learn_pace(record: RunRecord, plan: Plan, step_s: float) -> None:
    """Remember the seconds of a run that drew all its pictures."""
    request = record.task.request
    key, rest_s = kind_of_run(record.task, plan), record.total_s - len(record.steps) * step_s
    before = remembered_pace(key)
    if len(record.steps) != request.count * request.steps_run or (request.count > 1 and before is None):
        return  # it went on with another's, or does not tell what belongs to the start and what to each picture
    remember_pace(key, Pace(step_s, rest_s if before is None or request.count == 1 else before.rest_s))


def learn_of_crossing(record: RunRecord, prospect: Prospect, stage: StageName, footprint_bytes: int | None) -> None:
    """Correct the remainder where the steps took more than was predicted: at least so much."""
    if record.planned is None or footprint_bytes is None or prospect.task.device != "cpu":
        return
    if stage == prospect.subject.steps.name:
        _learn_remainder(prospect, record.planned, record.baseline_bytes, footprint_bytes)


def _need(planned: Planned, stage: StageName) -> int:
    """Of a stage; the highest one's where it has none, as before the first."""
    return next((need.peak_bytes for need in planned.needs if need.name == stage), planned.peak_bytes)


def _learn_remainder(prospect: Prospect, planned: Planned, baseline_bytes: int, peak_bytes: int) -> None:
    """Remember what the denoise stage took besides what was counted, over the baseline that was measured.

    Not where memory goes back at the stage's end only: then it differs from run to run.
    """
    shipped, measured = _shipped(prospect.task)
    if planned.plan.give_back == "stage" and measured:
        return
    subject = prospect.subject
    need = next(need for need in planned.needs if need.name == subject.steps.name)
    way = way_of(subject, planned.plan)
    expected = shipped.steps(way, planned.plan.give_back, subject.weights.largest_bytes, subject.by_slices)
    counted = need.peak_bytes - need.remainder_bytes - planned.baseline_bytes
    remember_remainder(_key(prospect.task), Seen((peak_bytes - baseline_bytes - counted) / expected, way.heap_bytes))


def _speed_of(task: Task) -> Speed:
    return remembered_speed(task.device, task.dtype, task.threads) or typical_speed(task.device, task.dtype)


def _shipped(task: Task) -> tuple[Remainder, bool]:
    """The remainder of this kind of processor or of the nearest, and whether it was measured on it.

    A GPU's is that of Intel's matrix unit.
    """
    if task.device != "cpu":
        return WITH_AVX512, True
    measured = machine.cpu_is_measured(task.dtype)
    if not machine.cpu_batches():
        return WITH_AVX2, measured
    return WITH_AVX512_IN_FP32 if measured and task.dtype == "fp32" else WITH_AVX512, measured


def _key(task: Task) -> str:
    by = "" if task.threads is None else f" {task.threads} threads"
    return f"{task.device} {task.dtype} torch {machine.torch_version()}{by}"
