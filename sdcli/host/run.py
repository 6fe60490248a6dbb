"""One run, from a task to a record: start a worker, plan, watch, relay, and see that every picture is kept."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sdcli import machine
from sdcli.domain import DeviceName, DtypeName, Part, Plan, Request
from sdcli.errors import CeilingCrossed, SdcliError, WillNotFit
from sdcli.host.baseline import build_note, hopeless_bytes, remember_baseline, remembered_baseline, typical_bytes
from sdcli.host.speeds import remember_speed, remembered_speed, typical_speed
from sdcli.host.watchdog import START, Crossing, Watchdog
from sdcli.host.worker import Worker
from sdcli.memory.limit import Ceiling, kernel_share_bytes
from sdcli.memory.meter import TreeMeter
from sdcli.memory.overhead import UNMEASURED_SHARE, WITH_AVX2, WITH_AVX512, Overhead
from sdcli.memory.planner import MARGIN_BYTES, Means, Planned, make_plan
from sdcli.memory.prepared import place_of_copy, unfinished
from sdcli.memory.speed import learned
from sdcli.messages import (
    Finished,
    Job,
    Message,
    Notice,
    PictureDone,
    Progress,
    Ready,
    Relieve,
    StageBegan,
    StageEnded,
    StageLoaded,
    Start,
    StepDone,
    Synthesize,
)
from sdcli.models.folder import Model
from sdcli.spool import Spool
from sdcli.units import MIB, format_limit, format_size


@dataclass(frozen=True, slots=True)
class Task:
    """Everything a run needs: what to draw, with what, on what, under which ceiling.

    `pixels` is the init image of img2img, RGB, at the request's size.
    """

    model: Model
    request: Request
    device: DeviceName
    dtype: DtypeName
    ceiling: Ceiling
    pixels: bytes = b""
    debug: bool = False


@dataclass(slots=True)
class StageRecord:
    """One stage as it went."""

    name: str
    load_s: float = 0.0
    run_s: float = 0.0
    predicted_peak_bytes: int = 0
    peak_bytes: int = 0


@dataclass(slots=True)
class RunRecord:
    """One run as it went. It is filled in as events come, so that a run that fails leaves what it has."""

    task: Task
    planned: Planned | None = None
    baseline_bytes: int = 0
    peak_bytes: int = 0
    host_peak_bytes: int = 0
    samples: int = 0
    torch_version: str = ""
    device: str = ""
    stages: list[StageRecord] = field(default_factory=list)
    steps: list[StepDone] = field(default_factory=list)
    checkpoints: Spool = field(default_factory=Spool)
    pictures: list[tuple[str | None, PictureDone]] = field(default_factory=list)
    events: list[tuple[int | None, str]] = field(default_factory=list)
    total_s: float = 0.0
    traceback: str = ""
    worker_pid: int = 0


VARYING_BYTES = 4 * MIB
"""By so much the same baseline differs from run to run."""

CUDA_KERNELS_BYTES = 176 * MIB
"""What the driver loads and libraries reserve when their kernels first run (benchmarks/RESULTS.md)."""

Show = Callable[[Message, Watchdog], None]
"""Told of every event, with the watchdog that knows the footprint."""

Save = Callable[[PictureDone, RunRecord], str | None]
"""Keeps one picture; returns where, or None for standard output."""


def run_task(task: Task, record: RunRecord, save: Save, show: Show, resume: dict[int, bytes] | None = None) -> None:
    """Do the task, filling in `record`. Raises SdcliError for whatever ends it early; no worker is left."""
    started = time.monotonic()
    limit = task.ceiling.limit_bytes
    known = remembered_baseline(task.device)
    place = _place(task)
    expected = known or typical_bytes(task.device)
    if known is not None or (limit is not None and limit <= hopeless_bytes(task.device)):  # refused at once
        make_plan(task.model, task.request, task.dtype, limit, expected, means_of(task))

    def plan_job(ready: Ready) -> Job:
        record.device, record.torch_version = ready.device, ready.torch_version
        if ready.flops is not None:
            remember_speed(task.device, task.dtype, replace(means_of(task).speed, flops=ready.flops))
        record.baseline_bytes = _baseline(task, ready)
        remember_baseline(task.device, record.baseline_bytes)
        planned_for = _as_planned(known or min(expected, record.baseline_bytes), record.baseline_bytes)
        record.planned = make_plan(task.model, task.request, task.dtype, limit, planned_for, means_of(task))
        part: Part = "latents" if record.planned.plan.fresh_decode else "whole"
        return _job(task, record.planned.plan, resume or {}, place, part)

    try:
        _work(task, record, plan_job, save, show)
        plan = record.planned.plan if record.planned else None
        if plan is not None and plan.fresh_decode:
            latents = ChainMap(record.checkpoints, dict(resume or {}))
            _work(task, record, lambda _: _job(task, plan, latents, place, "pictures"), save, show)
        _learn(record)
    finally:
        record.total_s = time.monotonic() - started
        if record.worker_pid and place is not None:
            shutil.rmtree(unfinished(place, record.worker_pid), ignore_errors=True)  # of a worker that was stopped


def _work(task: Task, record: RunRecord, job_for: Callable[[Ready], Job], save: Save, show: Show) -> None:
    """Have a worker do one job."""
    with watched_worker(task, record) as (worker, watchdog):
        for message in _relay(worker, watchdog, record):
            if isinstance(message, Ready):
                worker.send(job_for(message))
            elif isinstance(message, PictureDone):
                record.pictures.append((save(message, record), replace(message, payload=b"")))
                record.checkpoints.pop(message.image, None)
            show(message, watchdog)
            if isinstance(message, Finished):
                return


def means_of(task: Task) -> Means:
    """What a plan for this task may count on."""
    place, batches = _place(task), task.device != "cpu" or machine.cpu_batches()
    return Means(
        speed=remembered_speed(task.device, task.dtype) or typical_speed(task.device, task.dtype),
        prepared=place is not None,
        making=place is not None and not place.is_dir(),
        fused=machine.attends_fused(task.device, task.dtype),
        heap=task.device == "cpu",
        batches=batches,
        overhead=_overhead(task),
        note=build_note(task.device),
        margin_bytes=MARGIN_BYTES + (0 if task.device == "cuda" else kernel_share_bytes(task.ceiling.limit_bytes)),
    )


def _overhead(task: Task) -> Overhead:
    """Of this kind of processor, wide where it was never measured. A GPU's is that of Intel's matrix unit."""
    if task.device != "cpu":
        return WITH_AVX512
    nearest = WITH_AVX512 if machine.cpu_batches() else WITH_AVX2
    return nearest if machine.cpu_is_measured(task.dtype) else nearest.widened(UNMEASURED_SHARE)


def _place(task: Task) -> Path | None:
    """Of the denoiser's prepared copy."""
    return place_of_copy(task.model, task.device, task.dtype, task.request.latent_shape)


def make_synthetic(name: str, folder: Path, show: Callable[[Progress], None], debug: bool = False) -> None:
    """Have a worker make the synthetic model `name` in `folder`."""
    with Worker(debug) as worker:
        worker.send(Start("cpu", None))
        worker.send(Synthesize(name, str(folder)))
        for message in worker.messages():
            if isinstance(message, Progress):
                show(message)
            elif isinstance(message, Finished):
                return
        raise worker.end()


@contextmanager
def watched_worker(task: Task, record: RunRecord) -> Iterator[tuple[Worker, Watchdog]]:
    """A started worker under a started watchdog. A crossing, or a failed watch, ends in its own error."""
    device, limit_bytes = task.device, task.ceiling.limit_bytes
    footprint_limit = None if device == "cuda" else limit_bytes
    known = remembered_speed(device, task.dtype)
    with Worker(task.debug) as worker:
        record.worker_pid = worker.pid
        watchdog = Watchdog(os.getpid(), worker.pid, footprint_limit, lambda _: worker.send(Relieve()))
        worker.send(Start(device, limit_bytes, task.dtype if known is None else None))
        watchdog.start()
        try:
            yield worker, watchdog
        except SdcliError:
            _raise_if_ended_by(watchdog, task)
            record.traceback = worker.traceback
            raise
        finally:
            watchdog.stop()
            _take_peaks(watchdog, record)
        _raise_if_ended_by(watchdog, task)


def _relay(worker: Worker, watchdog: Watchdog, record: RunRecord) -> Iterator[Message]:
    """The worker's messages, each noted in the record and shown to the watchdog first."""
    for message in worker.messages():
        match message:
            case StageBegan(name):
                watchdog.enter(name)
                predicted = {need.name: need.peak_bytes for need in record.planned.needs} if record.planned else {}
                record.stages.append(StageRecord(name, predicted_peak_bytes=predicted.get(name, 0)))
            case StageLoaded(_, load_s):
                record.stages[-1].load_s = load_s
            case StepDone():
                watchdog.step = message.step
                record.steps.append(replace(message, payload=b""))  # of a thousand pictures they would be many
                record.checkpoints[message.image] = message.payload
            case StageEnded(_, run_s, device_peak_bytes):
                watchdog.leave()
                record.stages[-1].run_s = run_s
                record.stages[-1].peak_bytes = device_peak_bytes
            case Notice(what, step):
                record.events.append((step, what))
        yield message
    raise worker.end()


def _learn(record: RunRecord) -> None:
    """Correct the speeds that plans go by. The first step compiles kernels, and tells of them."""
    task, seconds = record.task, [step.seconds for step in record.steps[1:]]
    if record.planned is not None and seconds:
        took, speed = statistics.median(seconds), means_of(task).speed
        now = learned(speed, task.model, task.request, record.planned.plan, task.dtype, took)
        if now != speed:
            remember_speed(task.device, task.dtype, now)


def _as_planned(known_bytes: int, measured_bytes: int) -> int:
    """The baseline that was planned with before, so that the plan stays the same, unless it has grown since."""
    return known_bytes if measured_bytes <= known_bytes + VARYING_BYTES else measured_bytes


def _baseline(task: Task, ready: Ready) -> int:
    """What is in use before anything is loaded, of the memory that the ceiling covers."""
    return (
        ready.device_peak_bytes + CUDA_KERNELS_BYTES
        if task.device == "cuda"
        else TreeMeter(os.getpid()).footprint_bytes()
    )


def _job(task: Task, plan: Plan, resume: Mapping[int, bytes], place: Path | None, part: Part) -> Job:
    blobs = [resume[image] for image in sorted(resume)]
    payload = (task.pixels if part != "pictures" else b"") + b"".join(blobs)
    copy, folder = None if place is None else str(place), str(task.model.folder)
    return Job(task.request, plan, folder, task.dtype, tuple(map(len, blobs)), payload, copy, part)


def _take_peaks(watchdog: Watchdog, record: RunRecord) -> None:
    """Into the record: the footprint's peaks, or on CUDA the device's beside the host's."""
    peaks, on_cuda = watchdog.peaks, record.task.device == "cuda"
    record.samples += peaks.samples
    record.host_peak_bytes = max(record.host_peak_bytes, peaks.overall_bytes)
    if not on_cuda:
        for stage in record.stages:
            stage.peak_bytes = max(stage.peak_bytes, peaks.by_stage.get(stage.name, 0))
    on_device = max((stage.peak_bytes for stage in record.stages), default=0)
    record.peak_bytes = on_device if on_cuda else record.host_peak_bytes


def _raise_if_ended_by(watchdog: Watchdog, task: Task) -> None:
    """The watchdog's own reasons come before whatever the killed worker's pipe looked like."""
    limit_bytes = task.ceiling.limit_bytes
    if watchdog.crossing is not None and limit_bytes is not None:
        if watchdog.crossing.stage == START:
            refusal = f"will not fit: Python and torch alone take more than the ceiling of {format_size(limit_bytes)}"
            note = build_note(task.device)
            raise WillNotFit("; ".join(filter(None, (refusal, "give --mem-limit 1GiB", note))))
        raise CeilingCrossed(crossing_text(watchdog.crossing, limit_bytes))
    if watchdog.failure is not None:
        raise SdcliError(
            f"the watchdog failed ({watchdog.failure}): the ceiling could not be kept, the run was stopped"
        )


def crossing_text(crossing: Crossing, limit_bytes: int) -> str:
    """One line: stage, step, footprint, ceiling, what to do."""
    step = "" if crossing.step is None else f" after step {crossing.step}"
    more = format_limit(crossing.footprint_bytes + 128 * MIB)
    return (
        f"the ceiling of {format_size(limit_bytes)} was crossed in the stage {crossing.stage}{step}:"
        f" footprint {format_size(crossing.footprint_bytes)}, the worker was killed; give --mem-limit {more}"
        " or a smaller picture"
    )
