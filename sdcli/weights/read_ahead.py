"""Bringing mapped weights into memory before they are needed: a thread that reads while the kernels compute.

With the pages in the page cache already this costs next to nothing; from a cold cache, or under a limit that the cache
does not fit in, the disk works while the processor does. It reads a little ahead and no more: under a limit, what is
read too early drives out what is needed first, and is gone itself when its turn comes. Where the file system can, it
reads large pages: finding room for 300,000 small ones a step takes the processor's time from the kernels.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from mmap import PAGESIZE

from sdcli.units import MIB

Place = tuple[int, int]
"""Address and length, in bytes, of memory that a file is mapped to."""

_MADV_WILLNEED, _MADV_DONTNEED, _MADV_HUGEPAGE, _MADV_POPULATE_READ = 3, 4, 14, 22

CHUNK_BYTES = 4 * MIB
"""Read at a time, so that a large weight does not count as ahead before it is its turn."""


class ReadAhead:
    """Reads weights in the order of use, over and over, so many bytes before the one in use."""

    def __init__(self, places: Mapping[str, list[Place]], ahead_bytes: int) -> None:
        """Where each weight lies, in the order of use."""
        self._ahead = ahead_bytes // CHUNK_BYTES
        self._chunks: list[Place] = []
        self._weights: dict[str, tuple[int, int]] = {}
        for name, some in places.items():
            first = len(self._chunks)
            for place in some:
                _advise(place, _MADV_HUGEPAGE)
                self._chunks += _cut(place)
            self._weights[name] = first, len(self._chunks)
        self._reached: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def reach(self, name: str) -> None:
        """This weight is about to be used."""
        self._reached.put(name)

    def remove(self) -> None:
        """End the thread; the mappings may go after that."""
        self._reached.put(None)
        self._thread.join()

    def _serve(self) -> None:
        """Counts chunks on from round to round, so that what is ahead has the larger number."""
        count, at, done = len(self._chunks), 0, 0
        while (name := self._reached.get()) is not None:
            first, after = self._weights[name]
            on = (first - at) % count
            at += on if on <= count // 2 else on - count  # a transformer goes back for the second sample
            done, end = max(done, at), at + min(after - first + self._ahead, count)
            while done < end and self._reached.empty():
                chunk = self._chunks[done % count]
                if not _advise(chunk, _MADV_POPULATE_READ):
                    _advise(chunk, _MADV_WILLNEED)  # before Linux 5.14: read, not mapped
                done += 1


def let_go(place: Place) -> None:
    """Have the pages of a file mapped no more until they are used again. Never of memory that no file backs."""
    _advise(place, _MADV_DONTNEED)


def _cut(place: Place) -> Iterator[Place]:
    address, size = place
    return ((address + begin, min(CHUNK_BYTES, size - begin)) for begin in range(0, size, CHUNK_BYTES))


def _advise(place: Place, advice: int) -> bool:
    """Tell the system about pages; whether it took the advice. Advice harms nobody, whatever it is about."""
    if not sys.platform.startswith("linux"):
        return False
    address, nbytes = place
    begin = address // PAGESIZE * PAGESIZE
    told = ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(address + nbytes - begin), advice)
    return bool(told == 0)
