"""Memory for weights that stay: one mapping of large pages, filled from front to back.

Gigabytes in pages of 4 KiB take seconds of page faults to fill, and miss the processor's table of pages at every step.
Room that is not used is never touched and costs nothing.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

import torch

ALIGN_BYTES = 64
"""A cache line."""


class Arena:
    """Room for `size_bytes`, given out in pieces. All of it goes back when the last piece is dropped."""

    def __init__(self, size_bytes: int) -> None:
        if sys.platform == "linux":
            self._mapping = mmap.mmap(-1, max(1, size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with suppress(OSError):  # a kernel that was built without large pages
                self._mapping.madvise(mmap.MADV_HUGEPAGE)
        else:
            self._mapping = mmap.mmap(-1, max(1, size_bytes))
        self._whole = torch.frombuffer(self._mapping, dtype=torch.uint8)
        self._at = 0

    def take(self, nbytes: int) -> torch.Tensor:
        """The next so many bytes. Raises MemoryError when they are not there."""
        begin = -(-self._at // ALIGN_BYTES) * ALIGN_BYTES
        if begin + nbytes > len(self._whole):
            raise MemoryError(f"no room for {nbytes} bytes of weights")
        self._at = begin + nbytes
        return self._whole[begin : self._at]
