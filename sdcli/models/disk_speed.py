"""How fast a file can be read from its disk: found out with a few pieces of it that lie in no cache."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from sdcli.units import MIB

PIECE_BYTES, PIECES = 16 * MIB, 12
"""Read at most: so many pieces, spread evenly over the file."""

READ_BYTES = 2 * MIB
"""Asked for at a time."""

WHILE_S = 0.3
"""No further piece is read after this."""

LEAST_BYTES = 2 * PIECE_BYTES
"""Less says nothing."""


def reading_speed(path: Path) -> float | None:
    """Bytes a second, or None where it cannot be known: the system tells only on Linux what its cache holds.

    The pieces leave the system's cache first, but for what a program has mapped; a piece that stays there, or that is a
    hole in the file, says nothing of the disk and is left out.
    """
    if not (hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")):
        return None
    try:
        with path.open("rb", buffering=0) as file:
            return _speed(file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError:
        return None


def _speed(file: int, size_bytes: int) -> float | None:
    buffer, count, seconds = bytearray(READ_BYTES), 0, 0.0
    for index in range(PIECES):
        begin = (size_bytes - PIECE_BYTES) * index // PIECES // READ_BYTES * READ_BYTES
        if begin < 0 or seconds > WHILE_S:
            break
        os.posix_fadvise(file, begin, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
        if _is_hole(file, begin) or _is_cached(file, begin) or _is_cached(file, begin + PIECE_BYTES // 2):
            continue
        started = time.perf_counter()
        for at in range(begin, begin + PIECE_BYTES, READ_BYTES):
            count += os.preadv(file, [buffer], at)
        seconds += time.perf_counter() - started
    return count / seconds if count >= LEAST_BYTES and seconds > 0 else None


def _is_cached(file: int, at: int) -> bool:
    """Whether the system has these bytes without asking the disk."""
    try:
        return os.preadv(file, [bytearray(1)], at, os.RWF_NOWAIT) > 0
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise


def _is_hole(file: int, at: int) -> bool:
    try:
        return os.lseek(file, at, os.SEEK_DATA) != at
    except OSError as error:
        if error.errno == errno.ENXIO:  # there is none from here on
            return True
        raise
