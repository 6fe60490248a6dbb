"""Whether other programs take the processor while something is timed: CPU time of the whole system less our own."""

from __future__ import annotations

import os
import time

import psutil

NOTABLE = 0.1
"""This share of the cores disturbs figures: of two cores a fifth of one."""

_LEAST_S = 0.3
"""In less time the system's clock, which ticks a hundred times a second, says nothing."""

_IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Of the system's times those in which nobody computes, or which stand in another one as well."""


class Neighbours:
    """What others take of the cores from when this was made on."""

    def __init__(self) -> None:
        self._began, self._busy_s, self._own_s = time.monotonic(), _busy_s(), _own_s()

    def share(self) -> float | None:
        """Their part of all cores' time by now, 0 to 1; None for too short a time, or where the system does not tell.

        Workers count as ours once they have ended.
        """
        seconds = time.monotonic() - self._began
        if seconds < _LEAST_S or os.name == "nt":  # there a process that has ended takes its times along
            return None
        others_s = _busy_s() - self._busy_s - (_own_s() - self._own_s)
        return round(min(1.0, max(0.0, others_s / (seconds * (os.cpu_count() or 1)))), 3)


def _busy_s() -> float:
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in _IDLE))


def _own_s() -> float:
    """Of this process, and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
