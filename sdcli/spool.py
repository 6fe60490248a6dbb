"""Bytes of many pictures, of which no more than one picture's lie in memory. No torch, no psutil."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, MutableMapping
from typing import BinaryIO, cast

from sdcli.errors import SdcliError
from sdcli.settings import cache_dir


class Spool(MutableMapping[int, bytes]):
    """From a picture's number to its bytes: the last one's in memory, the others' in a file without a name.

    The file is in the cache's folder, else in the system's for temporary files, which may itself be memory. Where no
    file can be written everything stays in memory: what has been computed is not lost to a full disk.
    """

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._at: dict[int, tuple[int, int]] = {}  # offset and length
        self._in_memory: dict[int, bytes] = {}
        self._last: int | None = None
        self._end = 0

    def __setitem__(self, picture: int, blob: bytes) -> None:
        if self._last not in (None, picture):
            self._put_away()
        self._at.pop(picture, None)
        self._in_memory[picture] = blob
        self._last = picture

    def __getitem__(self, picture: int) -> bytes:
        if picture in self._in_memory:
            return self._in_memory[picture]
        offset, length = self._at[picture]
        file = cast("BinaryIO", self._file)
        file.seek(offset)
        return file.read(length)

    def __delitem__(self, picture: int) -> None:
        if self._at.pop(picture, None) is None:
            del self._in_memory[picture]

    def __iter__(self) -> Iterator[int]:
        yield from (*self._at, *self._in_memory)

    def __len__(self) -> int:
        return len(self._at) + len(self._in_memory)

    def _put_away(self) -> None:
        """Into the file, whatever is in memory."""
        try:
            file = self._file or self._opened()
            for picture, blob in list(self._in_memory.items()):
                file.seek(self._end)
                if file.write(blob) < len(blob):
                    return  # the disk is full
                self._at[picture] = (self._end, len(blob))
                self._end += len(blob)
                del self._in_memory[picture]
        except OSError:
            return

    def _opened(self) -> BinaryIO:
        """The file, without a buffer: what is written is in it, or is told to be not."""
        try:
            file = tempfile.TemporaryFile(buffering=0, dir=cache_dir())  # noqa: SIM115  closed with the spool
        except (OSError, SdcliError):
            file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  as well
        weakref.finalize(self, file.close)
        self._file = cast("BinaryIO", file)
        return self._file
