"""Reading ahead: as far as it may and no further, in the order of use, and an end whenever it is asked for."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

from sdcli.weights import read_ahead
from sdcli.weights.read_ahead import CHUNK_BYTES, Place, ReadAhead

WAIT_S = 60
"""For what happens at once, or never."""

ASK, LARGE, MAP = read_ahead._MADV_WILLNEED, read_ahead._MADV_HUGEPAGE, read_ahead._MADV_POPULATE_READ
AHEAD = 4


class Told:
    """In place of _advise: notes what is asked for and what is mapped; mapping waits until it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, let: int = 10**6, maps: bool = True) -> None:
        self.asked: list[Place] = []
        self.large: list[Place] = []
        self.mapped: list[Place] = []
        self.maps = maps
        self.begun, self.let = threading.Semaphore(0), threading.Semaphore(let)
        monkeypatch.setattr(read_ahead, "_advise", self)

    def __call__(self, place: Place, advice: int) -> bool:
        if advice in (ASK, LARGE):
            (self.asked if advice == ASK else self.large).append(place)
            return True
        assert advice == MAP
        self.mapped.append(place)
        self.begun.release()
        assert self.let.acquire(timeout=WAIT_S)
        return self.maps

    def wait(self, chunks: int) -> None:
        for _ in range(chunks):
            assert self.begun.acquire(timeout=WAIT_S)
        assert not self.begun.acquire(timeout=0.05), "it goes no further"


def weights(count: int, chunks: int = 1) -> dict[str, list[Place]]:
    """So many weights of so many chunks each, at addresses that are their numbers."""
    size = chunks * CHUNK_BYTES
    return {str(index): [(index * size, size)] for index in range(count)}


def numbers(places: list[Place]) -> list[int]:
    assert all(nbytes == CHUNK_BYTES for _, nbytes in places)
    return [address // CHUNK_BYTES for address, _ in places]


def resident_bytes(begin: int, nbytes: int) -> int:
    """How much of this memory is mapped into this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-[0-9a-f]+ ", line):
            inside = begin <= int(found[1], 16) < begin + nbytes
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_weights_are_mapped_before_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, pages = tmp_path / "file", 64
    path.write_bytes(bytes(pages * mmap.PAGESIZE))
    advise, done = read_ahead._advise, threading.Semaphore(0)

    def noted(place: Place, advice: int) -> bool:
        taken = advise(place, advice)
        if advice == MAP:
            done.release()
        return taken

    monkeypatch.setattr(read_ahead, "_advise", noted)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        mapping.madvise(mmap.MADV_RANDOM)  # or a fault brings its neighbours
        with warnings.catch_warnings(action="ignore"):
            address = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
        libc = ctypes.CDLL(None)
        if libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), MAP) != 0:
            pytest.skip("before Linux 5.14")
        before = resident_bytes(address, pages * mmap.PAGESIZE)
        assert before < 32 * mmap.PAGESIZE
        reader = ReadAhead(
            {"a": [(address, 10)], "b": [(address + 32 * mmap.PAGESIZE - 1, 32 * mmap.PAGESIZE + 1)]},
            AHEAD * CHUNK_BYTES,
        )
        reader.reach("a")
        assert done.acquire(timeout=WAIT_S) and done.acquire(timeout=WAIT_S)
        reader.remove()
        assert resident_bytes(address, pages * mmap.PAGESIZE) >= 33 * mmap.PAGESIZE


def test_places_that_are_no_memory_harm_nobody() -> None:
    for place in ((0, mmap.PAGESIZE), (2**46, 1)):
        assert not any(read_ahead._advise(place, advice) for advice in (LARGE, MAP))
        read_ahead._advise(place, ASK)


def test_it_keeps_its_distance_in_the_order_of_use_and_begins_again_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 4 * AHEAD
    told, reader = Told(monkeypatch), ReadAhead(weights(count), AHEAD * CHUNK_BYTES)
    reader.reach("0")
    told.wait(1 + AHEAD)
    assert numbers(told.mapped) == list(range(1 + AHEAD))
    for index in range(1, 2 * count):
        reader.reach(str(index % count))
        assert told.begun.acquire(timeout=WAIT_S)
    told.wait(0)
    reader.remove()
    assert numbers(told.mapped) == [index % count for index in range(2 * count + AHEAD)]
    assert told.asked == []
    assert told.large == [place for some in weights(count).values() for place in some]


def test_a_system_that_cannot_map_them_is_asked_to_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told, reader = Told(monkeypatch, maps=False), ReadAhead(weights(2 * AHEAD), AHEAD * CHUNK_BYTES)
    reader.reach("0")
    told.wait(1 + AHEAD)
    reader.remove()
    assert told.asked == told.mapped


def test_a_large_weight_is_read_as_far_as_the_distance_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    large = AHEAD + 3
    told, reader = Told(monkeypatch), ReadAhead(weights(4, large), AHEAD * CHUNK_BYTES)
    reader.reach("0")
    told.wait(large + AHEAD)
    reader.reach("1")
    told.wait(large)
    reader.remove()
    assert numbers(told.mapped) == list(range(2 * large + AHEAD))


def test_going_back_for_the_second_sample_reads_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told, reader = Told(monkeypatch), ReadAhead(weights(8 * AHEAD), AHEAD * CHUNK_BYTES)
    for index, more in ((0, 1 + AHEAD), (1, 1), (2, 1), (3, 1)):
        reader.reach(str(index))
        told.wait(more)
    for index in (0, 1, 2, 3):
        reader.reach(str(index))
    told.wait(0)
    reader.reach("4")
    told.wait(1)
    reader.remove()
    assert numbers(told.mapped) == list(range(5 + AHEAD))


def test_one_that_fell_behind_goes_on_from_where_the_kernels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    told, reader = Told(monkeypatch, let=0), ReadAhead(weights(8 * AHEAD), AHEAD * CHUNK_BYTES)
    reader.reach("0")
    assert told.begun.acquire(timeout=WAIT_S)
    reader.reach(str(3 * AHEAD))
    told.let.release(10**6)
    told.wait(1 + AHEAD)
    reader.remove()
    assert numbers(told.mapped) == [0, *range(3 * AHEAD, 4 * AHEAD + 1)]


def test_few_weights_are_read_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    told, reader = Told(monkeypatch), ReadAhead(weights(2), AHEAD * CHUNK_BYTES)
    reader.reach("0")
    told.wait(2)
    reader.reach("1")
    told.wait(1)
    reader.remove()
    assert numbers(told.mapped) == [0, 1, 0]


def test_removal_ends_the_thread_though_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    told, reader = Told(monkeypatch, let=0), ReadAhead(weights(8 * AHEAD), AHEAD * CHUNK_BYTES)
    reader.reach("0")
    assert told.begun.acquire(timeout=WAIT_S)
    remover = threading.Thread(target=reader.remove)
    remover.start()
    while reader._reached.empty():  # until the end has been asked for
        assert remover.is_alive()
    told.let.release(10**6)
    remover.join(WAIT_S)
    assert not remover.is_alive() and not reader._thread.is_alive()
    assert numbers(told.mapped) == [0], "what had begun was waited for, and the rest left"


def test_one_that_was_never_asked_ends_too() -> None:
    reader = ReadAhead(weights(1), AHEAD * CHUNK_BYTES)
    assert reader._thread.daemon, "it never keeps a worker from its end"
    reader.remove()
    assert not reader._thread.is_alive()
