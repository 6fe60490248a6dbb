"""One attempt: one plan tried in one worker under watch, and all that it says put into the run's record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sdcli.app.known import unknown_speed
from sdcli.app.means import Prospect
from sdcli.app.record import RunRecord, Task
from sdcli.domain import Part, Plan
from sdcli.errors import SdcliError
from sdcli.families.registry import family_of
from sdcli.host.control_group import ControlGroup
from sdcli.host.watchdog import Watchdog
from sdcli.host.watched import WatchedWorker, watched_worker
from sdcli.messages import Count, Counted, Finished, Job, Message, Ready
from sdcli.models.stamps import stamps_of

Answer = Callable[[Ready | Counted], Count | Job | None]
"""What a worker is told that has said what it weighs, or what it has counted: None if there is more to come."""

Hear = Callable[[Message, Watchdog], None]
"""Told of every message, with the watchdog that knows the footprint."""


def attempt(task: Task, record: RunRecord, answer: Answer, hear: Hear, group: ControlGroup | None = None) -> None:
    """Have a worker do one job, in the control group if there is one.

    Raises SdcliError for whatever ends it early; no worker is left.
    """
    watched: WatchedWorker | None = None
    stages_before = len(record.stages)
    measure = task.dtype if unknown_speed(task) else None
    try:
        network, limit_bytes = family_of(task.model).network, task.ceiling.limit_bytes
        with watched_worker(network, task.device, limit_bytes, measure, task.debug, task.threads, group) as watched:
            record.worker_pid = watched.worker.pid
            for message in watched.messages():
                record.take(message, task.dtype)
                record.take_peak(watched.watchdog.peaks)
                if isinstance(message, Ready | Counted) and (told := answer(message)) is not None:
                    watched.worker.send(told)
                hear(message, watched.watchdog)
                if isinstance(message, Finished):
                    return
    except SdcliError:
        record.traceback = watched.worker.traceback if watched is not None else ""
        raise
    finally:
        if watched is not None:
            record.take_peaks(watched.watchdog.peaks, stages_before)


def job_of(prospect: Prospect, plan: Plan, resume: Mapping[int, bytes], part: Part, saved: tuple[int, ...] = ()) -> Job:
    """What a worker is to do: all of it, or one part, going on from the checkpoints in `resume`.

    Pictures that are `saved` are not drawn again.
    """
    task, copy = prospect.task, prospect.copy
    blobs = [resume[image] for image in sorted(resume)]
    return Job(
        request=task.request,
        plan=plan,
        model=task.model.sources,
        dtype=task.dtype,
        checkpoints=tuple(map(len, blobs)),
        payload=(task.references + task.pixels + task.mask if part != "pictures" else b"") + b"".join(blobs),
        prepared=None if copy is None else str(copy),
        part=part,
        tables=prospect.tables(plan),
        stamps=dict(stamps_of(task.model)),
        keeps=task.keeps,
        preview_every=task.preview_every,
        saved=saved,
    )
