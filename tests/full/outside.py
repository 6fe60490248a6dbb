"""Looking at a whole run from outside, with nothing of sdcli's own: its process tree's peak, a kernel limit."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PERIOD_S = 0.003


@dataclass(frozen=True)
class Seen:
    """How a command ended and the most that its tree was seen to use."""

    code: int
    out: str
    err: str
    peak_bytes: int
    rss_bytes: int = 0


def watch(command: list[str], environment: dict[str, str]) -> Seen:
    """Run a command and sample RssAnon + RssShmem + VmSwap of its whole tree, and its resident set (Linux)."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    peak, rss, pids, listed_at = 0, 0, [process.pid], 0.0
    while process.poll() is None:
        if time.monotonic() - listed_at > 0.05:
            pids, listed_at = _tree(process.pid), time.monotonic()
        seen = list(map(_memory, pids))
        peak, rss = max(peak, sum(one for one, _ in seen)), max(rss, sum(one for _, one in seen))
        time.sleep(PERIOD_S)
    out, err = process.communicate()
    return Seen(process.returncode, out, err, peak, rss)


def _tree(root: int) -> list[int]:
    found, queue = [], [root]
    while queue:
        found.append(queue.pop())
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                queue += map(int, (task / "children").read_text().split())
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Footprint and resident set."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    told = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
    return sum(told.get(name, 0) for name in ("RssAnon", "RssShmem", "VmSwap")), told.get("VmRSS", 0)


class KernelLimit:
    """A memory control group of one's own (Linux, root), version 1 or 2."""

    def __init__(self, group: Path, limit: str, events: str) -> None:
        self._group, self._limit, self._events = group, limit, events

    def run(self, command: list[str], environment: dict[str, str], limit_bytes: int) -> tuple[Seen, int]:
        """Run a command under the limit; returns how it went and how many processes the kernel killed for it."""
        (self._group / self._limit).write_text(str(limit_bytes))
        enter = ["sh", "-c", f'echo $$ > "{self._group}/cgroup.procs" && exec "$@"', "sh"]
        done = subprocess.run(enter + command, env=environment, capture_output=True, text=True, errors="replace")
        kills = [
            line.split()[1] for line in (self._group / self._events).read_text().splitlines() if "oom_kill " in line
        ]
        return Seen(done.returncode, done.stdout, done.stderr, 0), int(kills[0]) if kills else 0


@contextlib.contextmanager
def kernel_limit() -> Iterator[KernelLimit | None]:
    """A new control group, removed at the end; None where none can be made."""
    name = f"sdcli-test-{os.getpid()}"
    for root, limit, events in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.events"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.oom_control"),
    ):
        group = root / name
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                with contextlib.suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
                yield KernelLimit(group, limit, events)
                return
        finally:
            for _ in range(50):
                with contextlib.suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)
    yield None


def evict(folder: Path) -> None:
    """Drop the folder's files from the page cache: a warm cache is charged to whoever read it first."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def in_page_cache(folder: Path) -> int:
    """Bytes of the folder's files that are in the page cache (mincore(2))."""
    libc, found = ctypes.CDLL(None, use_errno=True), 0
    for path in folder.rglob("*"):
        if not path.is_file() or not (size_bytes := path.stat().st_size):
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
            pages = (ctypes.c_ubyte * -(-size_bytes // mmap.PAGESIZE))()
            begin = ctypes.c_char.from_buffer(mapped)
            failed = libc.mincore(ctypes.byref(begin), ctypes.c_size_t(size_bytes), pages)
            del begin
            if failed:
                raise OSError(ctypes.get_errno(), "mincore")
            found += sum(page & 1 for page in pages) * mmap.PAGESIZE
    return found
