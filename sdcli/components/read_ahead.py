"""Bringing mapped weights into memory before they are needed: a thread that reads while the kernels compute.

With the pages in the page cache already this costs next to nothing; from a cold cache, or under a limit that the cache
does not fit in, the disk works while the processor does. It reads a little ahead and no more: under a limit, what is
read too early drives out what is needed first, and is gone itself when its turn comes.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from mmap import PAGESIZE

from sdcli.units import KIB, MIB

Place = tuple[int, int]
"""Address and length, in bytes, of memory that a file is mapped to."""

_MADV_WILLNEED, _MADV_POPULATE_READ = 3, 22

CHUNK_BYTES = 4 * MIB
"""Read at a time, so that a large weight does not count as ahead before it is its turn."""

REQUEST_BYTES = 512 * KIB
"""Asked for at a time: of a larger request the system takes no more than the disk does at once."""


class ReadAhead:
    """Reads weights in the order of use, over and over, so many bytes before the one in use."""

    def __init__(self, places: Mapping[str, list[Place]], ahead_bytes: int) -> None:
        """Where each weight lies, in the order of use."""
        self._ahead = ahead_bytes // CHUNK_BYTES
        self._chunks: list[Place] = []
        self._weights: dict[str, tuple[int, int]] = {}
        for name, some in places.items():
            first = len(self._chunks)
            self._chunks += [chunk for place in some for chunk in _cut(place, CHUNK_BYTES)]
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
        count, at, asked, mapped = len(self._chunks), 0, 0, 0
        while (name := self._reached.get()) is not None:
            first, after = self._weights[name]
            on = (first - at) % count
            at += on if on <= count // 2 else on - count  # a transformer goes back for the second sample
            end = at + min(after - first + self._ahead, count)
            asked, mapped = max(asked, at), max(mapped, at)
            for chunk in range(asked, end):
                for part in _cut(self._chunks[chunk % count], REQUEST_BYTES):
                    _advise(part, _MADV_WILLNEED)  # does not wait: the disk gets much to do
            asked = max(asked, end)
            while mapped < asked and self._reached.empty():
                _advise(self._chunks[mapped % count], _MADV_POPULATE_READ)
                mapped += 1


def _cut(place: Place, nbytes: int) -> Iterator[Place]:
    address, size = place
    return ((address + begin, min(nbytes, size - begin)) for begin in range(0, size, nbytes))


def _advise(place: Place, advice: int) -> None:
    """Tell the system about pages; before Linux 5.14 it does not map them."""
    if sys.platform.startswith("linux"):
        address, nbytes = place
        begin = address // PAGESIZE * PAGESIZE
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(address + nbytes - begin), advice)
