"""A worker under watch: started, listened to, ended, and whatever ended it told in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sdcli.domain import DeviceName, DtypeName
from sdcli.errors import CeilingCrossed, SdcliError, WillNotFit
from sdcli.host.control_group import ControlGroup
from sdcli.host.watchdog import START, Crossing, Watchdog
from sdcli.host.worker import Worker
from sdcli.messages import Message, Relieve, StageBegan, StageEnded, Start, StepDone, Watched
from sdcli.plan.baselines import build_note
from sdcli.plan.ceiling import options_for
from sdcli.units import GIB, MIB, format_limit, format_size


@dataclass(frozen=True, slots=True)
class WatchedWorker:
    """A worker and the watchdog that measures it."""

    worker: Worker
    watchdog: Watchdog

    def messages(self) -> Iterator[Message]:
        """What the worker says, each shown to the watchdog first. Raises what it reports, or how it ended."""
        for message in self.worker.messages():
            match message:
                case StageBegan(name):
                    self.watchdog.enter(name)
                case StepDone(step=step):
                    self.watchdog.step = step
                case StageEnded():
                    self.watchdog.leave()
            yield message
        raise self.worker.end()


@contextmanager
def watched_worker(
    network: str,
    device: DeviceName,
    limit_bytes: int | None,
    measure: DtypeName | None,
    debug: bool = False,
    threads: int | None = None,
    group: ControlGroup | None = None,
) -> Iterator[WatchedWorker]:
    """A started worker under a started watchdog. A crossing, or a failed watch, ends in its own error.

    On CUDA the ceiling is the device's own, and the footprint is only measured. With `measure` the worker finds out how
    fast it computes in that type, by as many `threads` of the CPU. In a control `group` the kernel may kill it.
    """
    footprint_limit_bytes = None if device == "cuda" else limit_bytes
    kernel_limit_bytes = None if group is None or device == "cuda" else group.limit_bytes
    kills_before = 0 if group is None else group.kills
    with Worker(network, debug, group) as worker:
        watchdog = Watchdog(
            os.getpid(),
            worker.pid,
            footprint_limit_bytes,
            warn=lambda _: worker.send(Relieve()),
            beat=lambda: worker.send(Watched()),
        )
        worker.send(Start(device, limit_bytes, measure, threads))
        watchdog.start()
        try:
            yield WatchedWorker(worker, watchdog)
        except SdcliError:
            _raise_if_ended_by(watchdog, device, limit_bytes, kernel_limit_bytes)
            if group is not None and group.kills > kills_before:
                raise _killed(watchdog, group) from None
            raise
        finally:
            watchdog.stop()
        _raise_if_ended_by(watchdog, device, limit_bytes, kernel_limit_bytes)


def _raise_if_ended_by(
    watchdog: Watchdog, device: DeviceName, limit_bytes: int | None, kernel_limit_bytes: int | None
) -> None:
    """The watchdog's own reasons come before whatever the killed worker's pipe looked like."""
    if watchdog.crossing is not None and limit_bytes is not None:
        if watchdog.crossing.stage == START:
            refusal = f"will not fit: Python and torch alone take more than the ceiling of {format_size(limit_bytes)}"
            note = build_note(device)
            held = kernel_limit_bytes is not None
            offer = f"give {options_for(GIB, limit_bytes, kernel_limit_bytes) if held else '--mem-limit 1GiB'}"
            raise WillNotFit("; ".join(filter(None, (refusal, offer, note))))
        raise _crossed(watchdog.crossing, limit_bytes, kernel_limit_bytes)
    if watchdog.failure is not None:
        raise SdcliError(
            f"the watchdog failed ({watchdog.failure}): the ceiling could not be kept, the run was stopped"
        )


def _killed(watchdog: Watchdog, group: ControlGroup) -> CeilingCrossed:
    """The kernel's kill at the group's limit, told as a ceiling that was crossed."""
    limit_bytes = group.limit_bytes or 0
    where = f"the kernel killed the worker at its limit of {format_size(limit_bytes)} {_place(watchdog)}"
    more = format_limit(limit_bytes * 5 // 4)
    return CeilingCrossed(
        f"{where}; give --kernel-limit {more}, or a lower --mem-limit", where, watchdog.stage, watchdog.step
    )


def _place(at: Watchdog | Crossing) -> str:
    return f"in the stage {at.stage}" + ("" if at.step is None else f" after step {at.step}")


def _crossed(crossing: Crossing, limit_bytes: int, kernel_limit_bytes: int | None) -> CeilingCrossed:
    """One line: stage, step, footprint, ceiling, what to do."""
    more = options_for(crossing.footprint_bytes + 128 * MIB, limit_bytes, kernel_limit_bytes)
    where = f"the ceiling of {format_size(limit_bytes)} was crossed {_place(crossing)}"
    footprint = f"footprint {format_size(crossing.footprint_bytes)}, the worker was killed"
    message = f"{where}: {footprint}; give {more} or a smaller picture"
    return CeilingCrossed(message, where, crossing.stage, crossing.step, crossing.footprint_bytes)
