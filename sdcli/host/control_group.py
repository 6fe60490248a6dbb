"""Memory control groups (Linux, versions 1 and 2): a new one for workers, with a limit that the kernel keeps, or the
one around this program, if it has that to itself. A group's peak counts page tables as well, and the page cache of
files that a process in it was the first to read.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.machine import memory_groups
from sdcli.units import MIB

_NAME = "sdcli-"
"""A group's name begins so; the process id of the sdcli that made it follows."""

_REMOVING_S = 5.0
"""The kernel takes a moment to let go of the pages of processes that have just ended."""

_LIMITS, _PEAKS, _EVENTS = (
    ("memory.max", "memory.limit_in_bytes"),
    ("memory.peak", "memory.max_usage_in_bytes"),
    ("memory.events", "memory.oom_control"),
)
"""Files of versions 2 and 1."""

_NO_SWAP = {"memory.swap.max": "0", "memory.swappiness": "0", "memory.memsw.limit_in_bytes": ""}
"""What keeps a group from being swapped out; the last one is memory and swap together: as much as the limit."""


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """The folder of a group, and its limit if it is one of ours."""

    folder: Path
    limit_bytes: int | None = None

    def entered(self, command: list[str]) -> list[str]:
        """The command line that runs `command` in the group from its first page on."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *command]

    @property
    def peak_bytes(self) -> int | None:
        """The most that the group has had since it was made; None where the kernel does not keep that."""
        told = (self._text(name).strip() for name in _PEAKS)
        return next((int(text) for text in told if text.isdecimal()), None)

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed at the limit."""
        lines = (line.split() for name in _EVENTS for line in self._text(name).splitlines())
        return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)

    @property
    def processes(self) -> set[int]:
        """The ids of those in it, without those in groups inside."""
        return set(map(int, self._text("cgroup.procs").split()))

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text("ascii")
        except OSError:
            return ""


@contextmanager
def limited_group(limit_bytes: int) -> Iterator[ControlGroup]:
    """A new group with this limit and without swap, removed afterwards. Raises SdcliError where none can be had."""
    for folder in memory_groups():
        _sweep(folder)
        group = ControlGroup(folder / f"{_NAME}{os.getpid()}", limit_bytes)
        try:
            group.folder.mkdir()
        except OSError:
            continue
        try:
            if _limit(group):
                yield group
                return
        finally:
            _remove(group.folder)
    raise SdcliError(_refusal(limit_bytes))


def _refusal(limit_bytes: int) -> str:
    if not sys.platform.startswith("linux"):
        return "--kernel-limit needs Linux: elsewhere no kernel limits the memory of a process; --mem-limit does"
    scope = f"systemd-run --user --scope -p MemoryMax={-(-limit_bytes // MIB)}M -p MemorySwapMax=0 sdcli …"
    return f"--kernel-limit: this user may make no memory control group here: run {scope} without it, or run as root"


def _limit(group: ControlGroup) -> bool:
    """Set the limit, and see that a process can enter."""
    limit = next((name for name in _LIMITS if (group.folder / name).exists()), None)
    if limit is None:
        return False
    try:
        (group.folder / limit).write_text(str(group.limit_bytes), "ascii")
        for name in filter(lambda name: (group.folder / name).exists(), _NO_SWAP):  # a kernel without swap has none
            (group.folder / name).write_text(_NO_SWAP[name] or str(group.limit_bytes), "ascii")
        return subprocess.run(group.entered(["true"]), capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove empty groups that a killed sdcli has left."""
    for left in folder.glob(f"{_NAME}*"):
        maker = left.name.removeprefix(_NAME)
        if maker.isdecimal() and not Path(f"/proc/{maker}").exists():
            with suppress(OSError):
                left.rmdir()


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVING_S
    while folder.exists():
        with suppress(OSError):
            folder.rmdir()
            return
        if time.monotonic() > deadline:
            return
        time.sleep(0.02)


@contextmanager
def group_of_run(limit_bytes: int | None) -> Iterator[RunGroup]:
    """The group that a run is counted in: with a limit a new one, which its workers join, else the one it is in."""
    if limit_bytes is None:
        yield RunGroup(None)
        return
    with limited_group(limit_bytes) as group:
        yield RunGroup(group)


class RunGroup:
    """Where a run is counted. `joined` is the group that its workers join, if they join one."""

    def __init__(self, joined: ControlGroup | None) -> None:
        self.joined = joined
        self._own = _group_of_this_process_alone() if joined is None else None
        self._before_bytes = self._own.peak_bytes if self._own is not None else None

    @property
    def peak_bytes(self) -> int | None:
        """The peak of the workers, else of all of the run if it has its group to itself; None where nobody knows.

        A peak of the whole group that it had before the run began is not the run's.
        """
        if self.joined is not None:
            return self.joined.peak_bytes
        if self._own is None or _group_of_this_process_alone() != self._own:
            return None
        peak = self._own.peak_bytes
        return peak if peak != self._before_bytes else None


def _group_of_this_process_alone() -> ControlGroup | None:
    groups = map(ControlGroup, memory_groups())
    return next((group for group in groups if group.processes == {os.getpid()}), None)


def drop_cached(files: Iterable[Path]) -> None:
    """Have the kernel forget what it keeps of files: what is cached already is charged to whoever read it first."""
    for file in files:
        with suppress(OSError), file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
