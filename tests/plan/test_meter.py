"""The footprint of processes: what counts, what does not, and the whole tree of them."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from sdcli.errors import SdcliError
from sdcli.plan import meter
from sdcli.plan.meter import (
    NOTHING,
    LinuxReader,
    Memory,
    TreeMeter,
    darwin_memory,
    linux_memory,
    memory_reader,
    status_memory,
)
from sdcli.units import KIB, MIB

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")

SIZE = 64 * MIB
SLACK = 3 * MIB


@contextmanager
def child(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs `script` at each line that it is sent, and answers with a line."""
    code = (
        "import mmap, os, subprocess, sys, time\n"
        "def answer(): print(flush=True); return sys.stdin.readline()\n"
        f"answer()\n{script}\nanswer()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert hear(process)
        yield process
    finally:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.communicate(b"\n\n")


def hear(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def go_on(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert hear(process)


@linux
@pytest.mark.parametrize(
    ("script", "counts", "touches"),
    [
        pytest.param("kept = b'x' * SIZE", True, True, id="its own memory"),
        pytest.param("kept = mmap.mmap(-1, SIZE); kept.write(b'x' * 2**20 * 64)",
                     True, True, id="shared anonymous memory"),
        pytest.param("file = os.memfd_create('a'); os.write(file, b'x' * SIZE)\n"
                     "kept = mmap.mmap(file, SIZE); sum(kept[::4096])", True, True, id="a mapped memory file"),
        pytest.param("kept = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE)",
                     False, False, id="memory that is never touched"),
        pytest.param("file = open(PATH, 'rb'); kept = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)\n"
                     "sum(kept[::4096])", False, True, id="clean pages of a file"),
        pytest.param("file = open(PATH, 'r+b'); kept = mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_COPY)\n"
                     "for at in range(0, SIZE, 4096): kept[at] = 1", True, True, id="changed copies of a file's pages"),
        pytest.param("open(PATH, 'rb').read(1)", False, False, id="next to nothing"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_dirty_pages_count_and_clean_pages_of_files_are_resident_alone(
    tmp_path: Path, script: str, counts: bool, touches: bool
) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(SIZE)
    if "PATH" in script and not counts and any(
        part.fstype == "tmpfs" and tmp_path.is_relative_to(part.mountpoint) for part in psutil.disk_partitions(all=True)
    ):  # fmt: skip
        pytest.skip("the temporary folder itself is memory")
    with child(script.replace("SIZE", str(SIZE)).replace("PATH", repr(str(file)))) as process:
        before = linux_memory(process.pid)
        go_on(process)
        after = linux_memory(process.pid)
    grown = after.footprint_bytes - before.footprint_bytes
    # a temporary copy of what is written is given back to the system, but for the heap's slack
    assert abs(grown - (SIZE if counts else 0)) < SLACK, f"{grown / MIB:.1f} MiB"
    resident = after.rss_bytes - before.rss_bytes
    assert abs(resident - (SIZE if touches else 0)) < SLACK, f"{resident / MIB:.1f} MiB"


@linux
def test_a_process_that_is_gone_counts_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert linux_memory(process.pid) == NOTHING == TreeMeter(process.pid).read()
    assert linux_memory(2**22 + 1) == NOTHING == LinuxReader()(2**22 + 1)


def descriptors() -> set[str]:
    """What this process holds open in /proc of others or itself, by name."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.lexists(link)}


@linux
def test_the_files_of_a_process_are_held_open_as_long_as_it_is_read() -> None:
    read = LinuxReader()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        files = {f"/proc/{process.pid}/{name}" for name in ("statm", "status")}
        assert read(process.pid).footprint_bytes > 0 and files <= descriptors()
        read.keep([process.pid])
        assert files <= descriptors()
        read.keep([])
        assert not files & descriptors()
        assert read(process.pid).footprint_bytes > 0, "and opened again"
        process.kill()
        process.wait()
        assert read(process.pid) == NOTHING and not files & descriptors()
    read(os.getpid())
    del read
    assert not {f"/proc/{os.getpid()}/statm", f"/proc/{os.getpid()}/status"} & descriptors()


@linux
def test_the_reader_of_many_looks_reads_what_one_look_does() -> None:
    read, own = LinuxReader(), os.getpid()
    for size in (1, 40 * MIB, 1):
        held = b"x" * size
        once, again = linux_memory(own), read(own)
        assert again.footprint_bytes == pytest.approx(once.footprint_bytes, abs=MIB)
        assert again.rss_bytes == pytest.approx(once.rss_bytes, abs=MIB)
    del held


@linux
def test_shared_memory_that_grows_is_seen_at_the_next_look() -> None:
    read, own = LinuxReader(), os.getpid()
    before = read(own).footprint_bytes
    with mmap.mmap(-1, 64 * MIB) as shared:  # no file's: it counts
        for at in range(0, 64 * MIB, 4096):
            shared[at] = 1
        assert read(own).footprint_bytes - before == pytest.approx(64 * MIB, abs=MIB)


@linux
def test_what_is_shared_or_swapped_out_is_read_anew_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, status, real = [0.0], [b"RssShmem:\t 100 kB\nVmSwap:\t 20 kB\n"], os.pread
    read, own = LinuxReader(), os.getpid()
    plain = read(own).footprint_bytes

    def pread(descriptor: int, size: int, offset: int) -> bytes:
        told = real(descriptor, size, offset)
        return b"\n" + status[0] if told.startswith(b"Name:") else b"100 50 20 0 0 0 0\n"

    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "pread", pread)
    page, read = os.sysconf("SC_PAGE_SIZE"), LinuxReader()
    assert plain > 0 and read(own) == Memory(30 * page + 120 * KIB, 50 * page)
    status[0] = b"RssShmem:\t 1 kB\nVmSwap:\t 2 kB\n"
    now[0] = 0.04
    assert read(own).footprint_bytes == 30 * page + 120 * KIB
    now[0] = 0.06
    assert read(own).footprint_bytes == 30 * page + 3 * KIB


STATUS = b"""Name:\tpython\nUmask:\t0022\nState:\tS (sleeping)\nVmPeak:\t  999999 kB\nVmRSS:\t   99999 kB
RssAnon:\t    1024 kB\nRssFile:\t   77777 kB\nRssShmem:\t      16 kB\nVmData:\t  5 kB\nVmSwap:\t       3 kB\nThreads:\t1
"""


RSS_BYTES = (1024 + 77777 + 16) * KIB


def test_a_status_file_is_summed_from_its_fields() -> None:
    assert status_memory(STATUS) == Memory((1024 + 16 + 3) * KIB, RSS_BYTES)
    assert status_memory(STATUS.replace(b"VmSwap:\t       3 kB\n", b"")) == Memory((1024 + 16) * KIB, RSS_BYTES)
    assert status_memory(b"Name:\tkthreadd\nState:\tS (sleeping)\n") == NOTHING
    assert status_memory(b"") == NOTHING


def test_a_process_cannot_pose_with_its_name() -> None:
    assert status_memory(STATUS.replace(b"python", b"RssAnon: 1 kB")) == status_memory(STATUS)


@linux
def test_the_reader_of_this_system_agrees_with_proc() -> None:
    read, told = memory_reader(), psutil.Process().memory_info()
    footprint, rss = read(os.getpid())
    assert isinstance(read, LinuxReader) and 5 * MIB < footprint < rss < psutil.virtual_memory().total
    assert rss == pytest.approx(told.rss, abs=SLACK) and footprint == pytest.approx(told.rss - told.shared, abs=SLACK)


class FakeLibproc:
    """proc_pid_rusage of macOS: fills the structure, 8 bytes of RSS at offset 64, and of footprint at 72."""

    def __init__(self, footprint: int) -> None:
        self.footprint = footprint
        self.asked: list[tuple[int, int]] = []

    def proc_pid_rusage(self, pid: int, flavour: int, structure: Any) -> int:
        self.asked.append((pid, flavour))
        if pid == 404:
            return -1
        filled = bytearray(b"\xff" * 296)
        filled[64:72] = (98765).to_bytes(8, sys.byteorder)
        filled[72:80] = self.footprint.to_bytes(8, sys.byteorder)
        ctypes.memmove(structure, bytes(filled), len(filled))
        return 0


@pytest.mark.parametrize("footprint", [0, 12345, 2**33 + 1, 2**63])
def test_on_macos_phys_footprint_is_read_from_its_offset(footprint: int) -> None:
    library = FakeLibproc(footprint)
    read = darwin_memory(cast(ctypes.CDLL, library))
    assert read(7) == Memory(footprint, 98765) and library.asked == [(7, 4)]
    assert read(404) == NOTHING


def test_elsewhere_private_bytes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    read = memory_reader()
    assert read is meter._private_bytes and read(os.getpid()).footprint_bytes > 5 * MIB
    monkeypatch.setattr(psutil, "Process", lambda pid: (_ for _ in ()).throw(psutil.NoSuchProcess(pid)))
    assert read(404) == NOTHING


# Trees


@linux
def test_children_and_their_children_count_as_soon_as_they_are_there() -> None:
    script = f"""
if os.fork() == 0:
    if os.fork() == 0:
        kept = b"x" * {SIZE}
        print(flush=True)
    time.sleep(600)
"""
    with child(script) as process:
        tree = TreeMeter(process.pid)
        before = tree.footprint_bytes()
        assert before == linux_memory(process.pid).footprint_bytes
        go_on(process)
        hear(process)
        family = psutil.Process(process.pid).children(recursive=True)
        grown = tree.footprint_bytes() - before
        assert len(family) == 2 and SIZE < grown < SIZE + 20 * MIB
        for one in family:
            one.kill()
        deadline = time.monotonic() + 10
        while tree.footprint_bytes() - before > SLACK and time.monotonic() < deadline:
            time.sleep(0.01)
        assert tree.footprint_bytes() - before < SLACK


FORKS = f"""
kept = b"x" * {SIZE}
answer()
if os.fork() == 0:
    print(flush=True)
    sys.stdin.readline()
    more = b"x" * {SIZE}
    print(flush=True)
    time.sleep(600)
os.wait()
"""


@linux
def test_a_child_that_has_only_been_forked_counts_what_it_has_beyond_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(meter, "_FORKED_S", 60.0)
    with child(FORKS) as process:
        tree = TreeMeter(process.pid)
        go_on(process)
        before = tree.footprint_bytes()
        assert before > SIZE
        go_on(process)
        assert abs(tree.footprint_bytes() - before) < SLACK, "it shares every page"
        assert tree.read().rss_bytes < before + SIZE // 2
        go_on(process)
        assert SIZE - SLACK < tree.footprint_bytes() - before < SIZE + SLACK
        monkeypatch.setattr(meter, "_FORKED_S", 0.0)
        assert tree.footprint_bytes() - before > 2 * SIZE, "after a while it may have copies of all of them"


@linux
def test_a_child_with_a_program_of_its_own_counts_in_full() -> None:
    script = "family = subprocess.Popen([sys.executable, '-c', 'print(flush=True); input()'], stdin=subprocess.PIPE)"
    with child(script) as process:
        tree = TreeMeter(process.pid)
        before = tree.footprint_bytes()
        go_on(process)
        hear(process)
        (one,) = psutil.Process(process.pid).children()
        its_own = linux_memory(one.pid).footprint_bytes
        assert its_own > SLACK and tree.footprint_bytes() - before == pytest.approx(its_own, abs=SLACK)


@pytest.mark.parametrize(("seen", "words"), [(None, "/proc is not mounted"), ("1", "of another process namespace")])
@linux
def test_a_proc_that_does_not_show_this_process_is_said(
    monkeypatch: pytest.MonkeyPatch, seen: str | None, words: str
) -> None:
    def readlink(_: str) -> str:
        if seen is None:
            raise FileNotFoundError
        return seen

    monkeypatch.setattr(meter.os, "readlink", readlink)
    with pytest.raises(SdcliError, match=words):
        TreeMeter(os.getpid())


@linux
def test_a_child_of_a_thread_other_than_the_first_counts() -> None:
    script = f"""
import threading
def start():
    global family
    family = subprocess.Popen([sys.executable, '-c', "kept = b'x' * {SIZE}; print(flush=True); input()"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    family.stdout.readline()
    global there
    there = True
    time.sleep(600)
thread = threading.Thread(target=start, daemon=True)
thread.start()
while 'there' not in globals(): time.sleep(0.01)
"""
    with child(script) as process:
        tree = TreeMeter(process.pid)
        before = tree.footprint_bytes()
        go_on(process)
        assert tree.footprint_bytes() - before > SIZE


@linux
def test_without_the_kernel_s_list_of_children_psutil_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with child("family = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)") as process:
        go_on(process)
        listed = meter._tree(process.pid)
        monkeypatch.setattr(meter.os.path, "exists", lambda _: False)
        assert meter._tree(process.pid) == listed and len(listed) == 2
        assert meter._tree(2**22 + 1) == {2**22 + 1: 0}


@linux
def test_the_tree_is_read_anew_only_when_a_process_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    last, now = ["41\n"], [100.0]
    monkeypatch.setattr(meter, "_tree", lambda root: read.append(root) or {root: 0})
    monkeypatch.setattr(meter, "_last_pid", lambda: last[0])
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    tree = TreeMeter(os.getpid())
    tree.footprint_bytes()
    tree.footprint_bytes()
    assert len(read) == 1
    last[0] = "42\n"
    tree.footprint_bytes()
    assert len(read) == 2
    now[0] += 1.5
    tree.footprint_bytes()
    assert len(read) == 3
