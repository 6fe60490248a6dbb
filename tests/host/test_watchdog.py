"""The watchdog against real processes that grow in every way that a worker might."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sdcli.host import watchdog as module
from sdcli.host.watchdog import START, WARN_BYTES, Watchdog, kill_tree
from sdcli.plan.meter import Memory, TreeMeter
from sdcli.units import MIB

ROOM_BYTES = 150 * MIB
"""From where a process stands to its ceiling."""

OVERSHOOT_BYTES = 100 * MIB
"""The most by which memory may be over the ceiling when that is noticed."""

WAIT_S = 60.0


@contextmanager
def process(script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says `ready`, waits for a line, then runs `script` and sleeps. Standing for host and worker."""
    prologue, _, body = script.partition("#go\n")
    code = f"import sys, time\n{prologue}\nprint('ready', flush=True)\nsys.stdin.readline()\n{body}\n"
    code += "print('done', flush=True)\ntime.sleep(600)\n"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdin is not None
    try:
        assert child.stdout.readline() == b"ready\n"
        yield child
    finally:
        if child.poll() is None:
            kill_tree(psutil.Process(child.pid))
        child.communicate()


def go(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()


def hear(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return child.stdout.readline()


def standing(child: subprocess.Popen[bytes]) -> int:
    """The process's footprint now."""
    return TreeMeter(child.pid).footprint_bytes()


@contextmanager
def watched(
    child: subprocess.Popen[bytes], limit_bytes: int | None, warn: Callable[[int], None] = lambda _: None
) -> Iterator[Watchdog]:
    dog = Watchdog(child.pid, child.pid, limit_bytes, warn)
    dog.start()
    try:
        yield dog
    finally:
        dog.stop()
        assert not dog.is_alive()


GROWTHS = {
    "Python's own memory, bit by bit": """
#go
kept = []
while len(kept) < 300:
    kept.append(bytearray(b"x" * 2**21))
""",
    "one C call that holds the interpreter": """
import ctypes, mmap
area = mmap.mmap(-1, 600 * 2**20)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
memset = ctypes.PyDLL(None).memset
memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
#go
memset(start, 1, 600 * 2**20)
""",
    "a forked child": """
import os
#go
if os.fork() == 0:
    kept = [bytearray(b"x" * 2**21) for _ in range(300)]
    time.sleep(600)
time.sleep(600)
""",
    "memory shared with a child": """
import mmap, os
#go
area = mmap.mmap(-1, 600 * 2**20)
if os.fork() == 0:
    for at in range(0, len(area), 4096):
        area[at] = 1
    time.sleep(600)
time.sleep(600)
""",
    "many threads at once": """
import threading
#go
kept = []
def grow():
    for _ in range(100):
        kept.append(bytearray(b"x" * 2**21))
threads = [threading.Thread(target=grow) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
    "a tensor that is filled": """
import torch
#go
tensor = torch.empty(600 * 2**20, dtype=torch.uint8).fill_(1)
""",
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mmap, fork and PyDLL as on Linux")
@pytest.mark.parametrize("script", GROWTHS.values(), ids=GROWTHS)
def test_growth_past_the_ceiling_is_killed_and_recorded(script: str) -> None:
    with process(script) as child:
        limit = standing(child) + ROOM_BYTES
        with watched(child, limit) as dog:
            dog.enter("denoise")
            dog.step = 3
            family = psutil.Process(child.pid).children(recursive=True)
            go(child)
            assert hear(child) == b"", "it grew to its end and was not killed"
            assert child.wait(WAIT_S) == -9
            family += [child for child in family if child.is_running()]
        assert dog.failure is None and dog.crossing is not None
        assert (dog.crossing.stage, dog.crossing.step) == ("denoise", 3)
        over = dog.crossing.footprint_bytes - limit
        assert 0 < over < OVERSHOOT_BYTES, f"{over / MIB:.0f} MiB over the ceiling"
        assert dog.peaks.overall_bytes >= dog.crossing.footprint_bytes
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a mapped file counts is known for Linux")
def test_clean_pages_of_a_mapped_file_are_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    on_memory = [part for part in psutil.disk_partitions(all=True) if part.fstype == "tmpfs"]
    if any(tmp_path.is_relative_to(part.mountpoint) for part in on_memory):
        pytest.skip("the temporary folder itself is memory")
    with file.open("wb") as stream:
        stream.truncate(2 * ROOM_BYTES + 60 * MIB)
    script = f"""
import mmap
file = open({str(file)!r}, "rb")
area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
#go
total = sum(area[at] for at in range(0, len(area), 4096))
"""
    with process(script) as child:
        before = standing(child)
        with watched(child, before + ROOM_BYTES) as dog:
            go(child)
            assert hear(child) == b"done\n"
            mapped = psutil.Process(child.pid).memory_info().shared
            _wait_for(lambda: dog.peaks.rss_bytes >= mapped)  # resident they are all the same
        assert dog.crossing is None and dog.failure is None
        assert mapped > 2 * ROOM_BYTES and dog.peaks.overall_bytes < before + 20 * MIB


GROW_WHEN_TOLD = """
kept = []
#go
kept.append(b"x" * (100 * 2**20))
print("grown", flush=True)
sys.stdin.readline()
"""


def test_near_the_ceiling_the_worker_is_warned_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[int] = []
    warned = threading.Event()

    def warn(footprint_bytes: int) -> None:
        warnings.append(footprint_bytes)
        warned.set()

    with process(GROW_WHEN_TOLD) as child:
        limit = standing(child) + WARN_BYTES + 50 * MIB
        with watched(child, limit, warn) as dog:
            _wait_for(lambda: dog.peaks.samples > 10)
            assert warnings == []
            go(child)
            assert hear(child) == b"grown\n"
            assert warned.wait(WAIT_S)
            samples = dog.peaks.samples
            _wait_for(lambda: dog.peaks.samples > samples + 20)
            assert len(warnings) == 1 and limit - WARN_BYTES < warnings[0] <= limit

            monkeypatch.setattr(module, "WARN_AGAIN_S", 0.0)
            _wait_for(lambda: len(warnings) > 2)
        assert dog.crossing is None and dog.failure is None and child.poll() is None


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("room", "period"), [(500, 10), (64, 8), (40, 5), (8, 3), (0, 3)])
def test_it_looks_the_more_often_the_nearer_the_ceiling_is(
    monkeypatch: pytest.MonkeyPatch, room: int, period: float
) -> None:
    monkeypatch.setattr(TreeMeter, "read", lambda self: Memory(1000 * MIB, 1000 * MIB))
    dog = Watchdog(os.getpid(), os.getpid(), (1000 + room) * MIB, lambda _: None)
    assert dog._look() * 1000 == pytest.approx(period, abs=0.2)
    assert dog.crossing is None


@pytest.mark.parametrize("limit_bytes", [None, 2**50])
def test_a_failing_meter_kills_the_worker_and_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], limit_bytes: int | None
) -> None:
    def fail(self: TreeMeter) -> Memory:
        raise OSError(24, "Too many open files")

    with process("#go\n") as child:
        with watched(child, limit_bytes) as dog:
            _wait_for(lambda: dog.peaks.samples > 2)
            monkeypatch.setattr(TreeMeter, "read", fail)
            assert child.wait(WAIT_S) == -9
        assert isinstance(dog.failure, OSError) and dog.crossing is None
    assert capfd.readouterr().err == ""


def test_a_warning_that_fails_is_a_failure_of_the_watch(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("nobody there")

    with process("#go\n") as child:
        with watched(child, standing(child) + WARN_BYTES // 2, fail) as dog:
            assert child.wait(WAIT_S) == -9
        assert isinstance(dog.failure, RuntimeError)


def test_without_a_ceiling_it_only_measures_and_peaks_are_kept_by_stage() -> None:
    with process(GROW_WHEN_TOLD) as child, watched(child, None) as dog:
        _wait_for(lambda: dog.peaks.samples > 3)
        dog.enter("denoise")
        go(child)
        assert hear(child) == b"grown\n"
        samples = dog.peaks.samples
        _wait_for(lambda: dog.peaks.samples > samples + 2)
        dog.enter("decode")
        dog.leave()
        peaks = dog.peaks
        assert peaks.by_stage["decode"] > 90 * MIB, "also of a stage that is too short for a look of its own"
        assert set(peaks.by_stage) == {START, "denoise", "decode"}
        assert peaks.by_stage["denoise"] - peaks.by_stage[START] > 90 * MIB
        assert peaks.overall_bytes == max(peaks.by_stage.values()) and dog.footprint_bytes <= peaks.overall_bytes
        assert child.poll() is None


def test_it_can_be_stopped_twice_and_before_it_starts() -> None:
    with process("#go\n") as child:
        idle = Watchdog(child.pid, child.pid, None, lambda _: None)
        idle.stop()
        assert idle.peaks.samples == 0
        with watched(child, None) as dog:
            _wait_for(lambda: dog.peaks.samples > 0)
        dog.stop()
        samples = dog.peaks.samples
        time.sleep(0.05)
        assert dog.peaks.samples == samples and child.poll() is None


def test_a_worker_that_has_ended_by_itself_is_no_failure() -> None:
    with process("#go\nsys.exit(3)\n") as child, watched(child, 2**50) as dog:
        go(child)
        assert child.wait(WAIT_S) == 3
        samples = dog.peaks.samples
        _wait_for(lambda: dog.peaks.samples > samples + 3)
        assert dog.failure is None and dog.footprint_bytes == 0


def test_kill_tree_takes_the_children_and_bears_those_already_gone() -> None:
    with process(
        "import subprocess\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n#go\n"
    ) as child:
        parent = psutil.Process(child.pid)
        family = [parent, *parent.children(recursive=True)]
        assert len(family) == 2
        kill_tree(parent)
        assert child.wait(WAIT_S) == -9
        psutil.wait_procs(family, timeout=WAIT_S)
        assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)
        kill_tree(parent)
