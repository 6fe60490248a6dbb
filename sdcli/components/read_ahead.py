"""Bringing mapped weights into memory before they are needed: a thread that reads while the kernels compute.

With the pages in the page cache already this costs next to nothing; from a cold cache, or under a limit that the cache
does not fit in, the disk works while the processor does.
"""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
from collections.abc import Iterable
from mmap import PAGESIZE

Place = tuple[int, int]
"""Address and length, in bytes, of memory that a file is mapped to."""

_MADV_WILLNEED, _MADV_POPULATE_READ = 3, 22


class ReadAhead:
    """Reads what was asked for last. A request that came before and has not begun is forgotten: its time is over."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[list[Place] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def want(self, places: list[Place]) -> None:
        """Have these read next."""
        self._wanted.put(places)

    def remove(self) -> None:
        """End the thread; the mappings may go after that."""
        self._wanted.put(None)
        self._thread.join()

    def _serve(self) -> None:
        while (places := self._wanted.get()) is not None:
            while not self._wanted.empty():
                places = self._wanted.get()
                if places is None:
                    return
            _populate(places)


def _populate(places: Iterable[Place]) -> None:
    """Read the pages and map them (Linux 5.14), or tell the system that they will be needed."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    for address, length in places:
        begin = address // PAGESIZE * PAGESIZE
        size = ctypes.c_size_t(address + length - begin)
        if libc.madvise(ctypes.c_void_p(begin), size, _MADV_POPULATE_READ) != 0:
            libc.madvise(ctypes.c_void_p(begin), size, _MADV_WILLNEED)
