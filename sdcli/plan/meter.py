"""The footprint of a process tree: dirty, compressed and device-owned pages, not clean file-backed ones.

Linux: RssAnon + RssShmem + VmSwap of /proc/PID/status. macOS: ri_phys_footprint of proc_pid_rusage.
Windows: private bytes. Beside it, from the same reading, the resident set (RSS), in which clean pages of files count:
it decides nothing, and most other tools tell it. psutil's own full report walks all mappings: 6 to 23 ms with mapped
weights, too slow to poll; a read of /proc/PID/status takes 0.01 ms, one of statm a tenth of that.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable, Container
from contextlib import suppress
from typing import NamedTuple

import psutil

from sdcli.errors import SdcliError
from sdcli.units import KIB, MIB

_TREE_AGE_S = 1.0
"""The list of processes is read anew at least this often; on Linux also whenever any process was made."""

_FORKED_S = 1.0
"""A child that has only been forked shares its parent's pages for so long: what it has beyond them counts."""

_AFRESH_S = 0.05
"""How much of a process is shared memory or swapped out is read anew so often (Linux), or after as much growth
of what it shares, clean pages of files among it:"""

_AFRESH_BYTES = 8 * MIB

_PF_FORKNOEXEC = 0x40
"""Linux's mark of a process that was forked and runs the program of its parent yet (include/linux/sched.h)."""

_RUSAGE_INFO_V4 = 4
_RUSAGE_BYTES = 296
_RESIDENT_SIZE_AT, _PHYS_FOOTPRINT_AT = 64, 72


class Memory(NamedTuple):
    """What a process or a tree has: its footprint, and its resident set."""

    footprint_bytes: int
    rss_bytes: int


NOTHING = Memory(0, 0)


class TreeMeter:
    """Measures a process and all its descendants. Raises SdcliError where this system does not tell."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._read = memory_reader()
        self._parents = {root: 0}
        self._forked: dict[int, float] = {}  # when each was seen first
        self._listed_at, self._last_pid = 0.0, ""

    def footprint_bytes(self) -> int:
        """The tree's footprint now. Processes that are gone count nothing."""
        return self.read().footprint_bytes

    def read(self) -> Memory:
        """The tree's footprint and resident set now."""
        now, last_pid = time.monotonic(), _last_pid()
        if last_pid != self._last_pid or now - self._listed_at > _TREE_AGE_S:
            self._parents = _tree(self._root)
            self._forked = {
                pid: self._forked.get(pid, now) for pid in self._parents if pid != self._root and _is_only_forked(pid)
            }
            self._listed_at, self._last_pid = now, last_pid
            if isinstance(self._read, LinuxReader):
                self._read.keep(self._parents)
        seen = {pid: self._read(pid) for pid in self._parents}
        footprint, rss = map(sum, zip(*seen.values(), strict=True))
        for pid, seen_at in self._forked.items():
            if now - seen_at < _FORKED_S and _is_only_forked(pid):
                shared = map(min, seen[pid], seen[self._parents[pid]])
                footprint, rss = footprint - next(shared), rss - next(shared)
        return Memory(footprint, rss)


def memory_reader() -> Callable[[int], Memory]:
    """How this system tells what one process id has; nothing for one that is gone."""
    if sys.platform.startswith("linux"):
        _require_own_proc()
        return LinuxReader()
    if sys.platform == "darwin":
        return darwin_memory(ctypes.CDLL("/usr/lib/libproc.dylib", use_errno=True))
    return _private_bytes


def _require_own_proc() -> None:
    """Without /proc, or with that of another process namespace, no ceiling could be kept."""
    try:
        own = os.readlink("/proc/self") == str(os.getpid())
    except OSError as error:
        raise SdcliError("/proc is not mounted, and memory cannot be measured without it: mount it") from error
    if not own:
        raise SdcliError("/proc is of another process namespace, so memory cannot be measured: unshare --mount-proc")


class _Rest(NamedTuple):
    """Shared and swapped memory of a process, and when it was read."""

    read_at: float
    shared_bytes: int
    footprint_bytes: int

    def is_old(self, shared_bytes: int) -> bool:
        """Whether it may be more by now."""
        return time.monotonic() - self.read_at >= _AFRESH_S or shared_bytes - self.shared_bytes >= _AFRESH_BYTES


class LinuxReader:
    """Reads processes again and again, whose files in /proc it holds open: opening one takes longer than reading it.

    /proc/PID/statm tells the resident set, and how much of it is files' or shared. The rest of the footprint is in
    /proc/PID/status.
    """

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, int]] = {}
        self._rest: dict[int, _Rest] = {}

    def __call__(self, pid: int) -> Memory:
        """What a process has; nothing if it is gone."""
        try:
            if pid not in self._open:
                self._open[pid] = _opened(pid)
            statm, status = self._open[pid]
            resident, shared = map(int, os.pread(statm, 256, 0).split()[1:3])
            shared_bytes = shared * _page_bytes()
            rest = self._rest.get(pid)
            if rest is None or rest.is_old(shared_bytes):
                told = os.pread(status, 8192, 0)
                rest_bytes = (_kilobytes(told, b"\nRssShmem:") + _kilobytes(told, b"\nVmSwap:")) * KIB
                rest = self._rest[pid] = _Rest(time.monotonic(), shared_bytes, rest_bytes)
        except (OSError, ValueError):
            self._drop(pid)
            return NOTHING
        return Memory((resident - shared) * _page_bytes() + rest.footprint_bytes, resident * _page_bytes())

    def keep(self, pids: Container[int]) -> None:
        """Let go of the files of all other processes."""
        for pid in [pid for pid in self._open if pid not in pids]:
            self._drop(pid)

    def __del__(self) -> None:
        self.keep(())

    def _drop(self, pid: int) -> None:
        self._rest.pop(pid, None)
        for descriptor in self._open.pop(pid, ()):
            with suppress(OSError):
                os.close(descriptor)


def _opened(pid: int) -> tuple[int, int]:
    statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)
    try:
        return statm, os.open(f"/proc/{pid}/status", os.O_RDONLY)
    except OSError:
        os.close(statm)
        raise


@functools.cache
def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def linux_memory(pid: int) -> Memory:
    """From /proc/PID/status."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            return status_memory(file.read(8192))
    except OSError:
        return NOTHING


def status_memory(status: bytes) -> Memory:
    """Of the text of a status file: RssAnon + RssShmem + VmSwap, and RssAnon + RssShmem + RssFile."""
    anonymous, shared, files, swap = (
        _kilobytes(status, field) for field in (b"\nRssAnon:", b"\nRssShmem:", b"\nRssFile:", b"\nVmSwap:")
    )
    return Memory((anonymous + shared + swap) * KIB, (anonymous + shared + files) * KIB)


def _kilobytes(status: bytes, field: bytes) -> int:
    at = status.find(field)
    return int(status[at + len(field) : status.index(b"kB", at)]) if at >= 0 else 0


def darwin_memory(libproc: ctypes.CDLL) -> Callable[[int], Memory]:
    """From proc_pid_rusage, flavour RUSAGE_INFO_V4."""

    def read(pid: int) -> Memory:
        info = (ctypes.c_uint8 * _RUSAGE_BYTES)()
        if libproc.proc_pid_rusage(pid, _RUSAGE_INFO_V4, ctypes.byref(info)) != 0:
            return NOTHING
        resident, footprint = (
            int.from_bytes(bytes(info[at : at + 8]), sys.byteorder) for at in (_RESIDENT_SIZE_AT, _PHYS_FOOTPRINT_AT)
        )
        return Memory(footprint, resident)

    return read


def _private_bytes(pid: int) -> Memory:
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return NOTHING
    return Memory(int(getattr(info, "private", info.rss)), int(info.rss))


def _last_pid() -> str:
    """The last process id given out (Linux): while it stays, no process and no thread was made."""
    try:
        return os.pread(_load_average(), 256, 0).decode().rpartition(" ")[2]
    except OSError:
        return ""


@functools.cache
def _load_average() -> int:
    """Open as long as this process lives."""
    return os.open("/proc/loadavg", os.O_RDONLY)


def _tree(root: int) -> dict[int, int]:
    """The process ids of `root` and all its descendants, each with its parent's."""
    if not os.path.exists(f"/proc/{root}/task/{root}/children"):
        try:
            return {root: 0, **{child.pid: root for child in psutil.Process(root).children(recursive=True)}}
        except psutil.Error:
            return {root: 0}
    found, queue = {root: 0}, [root]
    while queue:
        pid = queue.pop()
        for task in _threads(pid):
            try:
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children = list(map(int, file.read().split()))
            except OSError:
                continue  # this thread is gone; its children are another's now
            found |= dict.fromkeys(children, pid)
            queue += children
    return found


def _is_only_forked(pid: int) -> bool:
    """Whether a process has not begun a program of its own yet (Linux): its pages are its parent's."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return bool(int(file.read(1024).rpartition(b")")[2].split()[6]) & _PF_FORKNOEXEC)
    except (OSError, ValueError, IndexError):
        return False


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
