"""Reading ahead: the last wish first, old ones forgotten, and an end whenever it is asked for."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from sdcli.components import read_ahead
from sdcli.components.read_ahead import Place, ReadAhead

WAIT_S = 60
"""For what happens at once, or never."""


class Slow:
    """In place of _populate: notes what it is given, and goes on when it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[list[Place]] = []
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(read_ahead, "_populate", self)

    def __call__(self, places: Iterable[Place]) -> None:
        self.seen.append(list(places))
        self.begun.release()
        assert self.go_on.acquire(timeout=WAIT_S)


def resident_bytes(address: int) -> int:
    """How much of the mapping at this address is mapped into this process."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith(f"{address:x}-"))
    return int(next(line for line in lines[first:] if line.startswith("Rss:")).split()[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_wanted_places_are_mapped_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pages = tmp_path / "file", 64
    path.write_bytes(bytes(pages * mmap.PAGESIZE))
    populate, done = read_ahead._populate, threading.Event()

    def noted(places: list[Place]) -> None:
        populate(places)
        done.set()

    monkeypatch.setattr(read_ahead, "_populate", noted)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)  # or a fault brings its neighbours
        with warnings.catch_warnings(action="ignore"):
            address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
        libc = ctypes.CDLL(None)
        if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), read_ahead._MADV_POPULATE_READ) != 0:
            pytest.skip("before Linux 5.14")
        before = resident_bytes(address)
        assert before < 32 * mmap.PAGESIZE
        reader = ReadAhead()
        reader.want([(address + 10, 30), (address + 32 * mmap.PAGESIZE - 1, 32 * mmap.PAGESIZE + 1)])
        assert done.wait(WAIT_S)
        reader.remove()
        assert resident_bytes(address) >= 33 * mmap.PAGESIZE


def test_places_that_are_no_memory_harm_nobody() -> None:
    read_ahead._populate([(0, mmap.PAGESIZE), (2**46, 1)])


def test_a_request_that_has_not_begun_gives_way_to_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, reader = Slow(monkeypatch), ReadAhead()
    reader.want([(1, 1)])
    assert slow.begun.acquire(timeout=WAIT_S)
    for place in (2, 3, 4):
        reader.want([(place, 1)])
    slow.go_on.release()
    assert slow.begun.acquire(timeout=WAIT_S)
    assert slow.seen == [[(1, 1)], [(4, 1)]]
    slow.go_on.release()
    reader.remove()
    assert slow.seen[2:] == []


def test_removal_ends_the_thread_though_requests_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, reader = Slow(monkeypatch), ReadAhead()
    reader.want([(1, 1)])
    assert slow.begun.acquire(timeout=WAIT_S)
    for place in range(100):
        reader.want([(place, 1)])
    remover = threading.Thread(target=reader.remove)
    remover.start()
    while reader._wanted.qsize() < 101:  # until the end has been asked for
        assert remover.is_alive()
    slow.go_on.release()
    remover.join(WAIT_S)
    assert not remover.is_alive() and not reader._thread.is_alive()
    assert slow.seen == [[(1, 1)]], "what waited is forgotten, and what had begun was waited for"


def test_one_that_was_never_asked_ends_too() -> None:
    reader = ReadAhead()
    assert reader._thread.daemon, "it never keeps a worker from its end"
    reader.remove()
    assert not reader._thread.is_alive()
