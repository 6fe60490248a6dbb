"""One worker under watch: started, listened to, ended, and whatever ended it told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from sdcli import interrupts
from sdcli.app.record import RunRecord, StageRecord, Task
from sdcli.domain import DtypeName
from sdcli.errors import CeilingCrossed, SdcliError, WillNotFit
from sdcli.host.watchdog import START, Crossing, Watchdog
from sdcli.host.worker import Worker
from sdcli.messages import (
    LatentsDone,
    Message,
    Notice,
    Relieve,
    StageBegan,
    StageEnded,
    StageLoaded,
    Start,
    StepDone,
    Watched,
)
from sdcli.plan.baselines import build_note
from sdcli.plan.speeds import remembered_speed
from sdcli.units import MIB, format_limit, format_size


@contextmanager
def watched_worker(task: Task, record: RunRecord) -> Iterator[tuple[Worker, Watchdog]]:
    """A started worker under a started watchdog. A crossing, or a failed watch, ends in its own error."""
    device, limit_bytes = task.device, task.ceiling.limit_bytes
    footprint_limit = None if device == "cuda" else limit_bytes
    known = remembered_speed(device, task.dtype)
    with Worker(task.debug) as worker:
        record.worker_pid = worker.pid
        stages_before = len(record.stages)
        watchdog = Watchdog(
            os.getpid(),
            worker.pid,
            footprint_limit,
            warn=lambda _: worker.send(Relieve()),
            beat=lambda: worker.send(Watched()),
        )
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
            _take_peaks(watchdog, record, stages_before)
        _raise_if_ended_by(watchdog, task)


def relay(worker: Worker, watchdog: Watchdog, record: RunRecord, dtype: DtypeName) -> Iterator[Message]:
    """The messages of a worker that computes in this type, each noted in the record and shown to the watchdog first."""
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
                if message.step == message.count:
                    _denoised(record, message.image, message.payload, dtype)
                else:
                    record.checkpoints[message.image] = message.payload
            case LatentsDone(image, payload):
                _denoised(record, image, payload, dtype)
            case StageEnded(_, run_s, device_peak_bytes):
                watchdog.leave()
                record.stages[-1].run_s = run_s
                record.stages[-1].peak_bytes = device_peak_bytes
            case Notice(what, step):
                record.events.append((step, what))
        yield message
    raise worker.end()


def _denoised(record: RunRecord, image: int, payload: bytes, dtype: DtypeName) -> None:
    """A picture is only to be decoded."""
    with interrupts.held():
        record.finished[image] = payload
        record.denoised_in.setdefault(image, dtype)  # one that is handed over again was denoised before
        record.checkpoints.pop(image, None)


def _take_peaks(watchdog: Watchdog, record: RunRecord, stages_before: int) -> None:
    """Into the record: the footprint's peaks, or on CUDA the device's beside the host's."""
    peaks, on_cuda = watchdog.peaks, record.task.device == "cuda"
    record.samples += peaks.samples
    record.host_peak_bytes = max(record.host_peak_bytes, peaks.overall_bytes)
    if not on_cuda:
        for stage in record.stages[stages_before:]:
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
