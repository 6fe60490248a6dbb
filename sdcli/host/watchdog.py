"""The watchdog: a thread that measures the process tree and kills the worker when it crosses the ceiling.

It lives in the host, because a thread of the worker cannot run while a C call holds the worker's
interpreter. It dies loudly: whatever ends it, the worker ends too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from sdcli.plan.meter import TreeMeter
from sdcli.plan.series import Series
from sdcli.units import GIB

PERIOD_S, NEAR_PERIOD_S = 0.010, 0.003
"""Between two looks: at most, and at least, near the ceiling. A look takes 0.1 ms of a core that the worker wants."""

PACE_BYTES_PER_S = 8 * GIB
"""No worker comes nearer to its ceiling faster than this: torch faults memory in at 2 GiB/s a thread."""

WARN_BYTES = 100 * 10**6
"""This far below the ceiling the worker is told to free what it can, as iOS warns an app."""

BEAT_S = 0.15
"""How often the worker hears that it is watched. It stops itself after 0.6 s without (engine/__main__.py)."""

START = "start"
"""The stage before the first: the worker imports, nothing is loaded."""

WARN_AGAIN_S = 10.0
"""A run planned to the brim lives below the ceiling by less than that: freeing over and over would only slow it."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """The ceiling was crossed: where the run was, and how far it came."""

    footprint_bytes: int
    stage: str
    step: int | None


@dataclass(slots=True)
class Peaks:
    """What was measured: the highest footprint of all and of each stage, beside it the highest resident set, and how it
    went over time.

    Times are those of time.monotonic().
    """

    overall_bytes: int = 0
    rss_bytes: int = 0
    samples: int = 0
    by_stage: dict[str, int] = field(default_factory=dict)
    series: Series = field(default_factory=Series)


class Watchdog(threading.Thread):
    """Watches `host` and all its descendants, and kills `worker` and its descendants on crossing.

    `enter`, `leave` and `step` are for whoever relays the worker's events. `warn` is called, in this
    thread, when the footprint comes near the ceiling, and `beat` as long as the watch goes on; neither may wait for
    anything. `failure` holds what ended the watch, if anything did.
    """

    def __init__(
        self,
        host: int,
        worker: int,
        limit_bytes: int | None,
        warn: Callable[[int], None],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.stage = START
        self.step: int | None = None
        self.footprint_bytes = 0
        self.peaks = Peaks()
        self.crossing: Crossing | None = None
        self.failure: BaseException | None = None
        self._meter = TreeMeter(host)
        self._worker = psutil.Process(worker)
        self._limit_bytes, self._warn, self._beat = limit_bytes, warn, beat
        self._warned_at = self._beat_at = float("-inf")
        self._stopping = threading.Event()
        self._lap_bytes = 0

    def run(self) -> None:
        """Measure until told to stop, or until the ceiling is crossed."""
        try:
            while not self._stopping.wait(self._look()):
                pass
        except BaseException as error:  # the host, which waits for the worker, raises it where a person sees it
            self.failure = error
            kill_tree(self._worker)

    def enter(self, stage: str) -> None:
        """A stage begins."""
        self.stage, self.step = stage, None

    def leave(self) -> None:
        """The stage ends: one too short for a look of its own has the last look's footprint as its peak."""
        self.peaks.by_stage.setdefault(self.stage, self.footprint_bytes)

    def lap(self) -> int:
        """The highest footprint since it was asked for last; 0 if nobody looked meanwhile."""
        peak, self._lap_bytes = self._lap_bytes, 0
        return peak

    def stop(self) -> None:
        """End the watch and wait for it."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    def _look(self) -> float:
        """Measure once and act on it; returns the seconds until the next look."""
        footprint, rss = self._meter.read()
        if self._limit_bytes is not None and footprint > self._limit_bytes:
            footprint, rss = self._meter.read()  # a child just forked shares its parent's pages for a moment
        self._record(footprint, rss)
        self._keep_going()
        if self._limit_bytes is None:
            return PERIOD_S
        if footprint > self._limit_bytes and self.crossing is None:
            self.crossing = Crossing(footprint, self.stage, self.step)  # first: whoever sees the death asks why
            kill_tree(self._worker)
        elif footprint > self._limit_bytes - WARN_BYTES and time.monotonic() - self._warned_at > WARN_AGAIN_S:
            self._warned_at = time.monotonic()
            self._warn(footprint)
        return min(PERIOD_S, max(NEAR_PERIOD_S, (self._limit_bytes - footprint) / PACE_BYTES_PER_S))

    def _keep_going(self) -> None:
        """Tell the worker that it is watched, and let it go on if it has stopped because it was not."""
        now = time.monotonic()
        if now - self._beat_at < BEAT_S:
            return
        self._beat_at = now
        self._beat()
        with suppress(psutil.Error):
            if self._worker.status() == psutil.STATUS_STOPPED:
                self._worker.resume()

    def _record(self, footprint: int, rss: int) -> None:
        stage = self.stage
        self.footprint_bytes = footprint
        self.peaks.samples += 1
        self._lap_bytes = max(self._lap_bytes, footprint)
        self.peaks.overall_bytes = max(self.peaks.overall_bytes, footprint)
        self.peaks.rss_bytes = max(self.peaks.rss_bytes, rss)
        self.peaks.by_stage[stage] = max(self.peaks.by_stage.get(stage, 0), footprint)
        self.peaks.series.add(time.monotonic(), footprint, stage)


def kill_tree(process: psutil.Process) -> None:
    """SIGKILL a process first, so that it makes no more children, then those it has."""
    try:
        children = process.children(recursive=True)
    except psutil.Error:
        children = []
    for victim in (process, *children):
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            continue
