"""Files of the Hub's cache by their digests: a blob's name says what is in it.

A large file's blob is named by its sha256, a small one's by its number in git, a SHA-1 of a header and the content
(https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sdcli.units import MIB

PIECE_BYTES = 1 * MIB

_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")

Moved = Callable[[int], None]
"""Hears how many bytes more are done."""


class Digest(Protocol):
    """What hashlib gives."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more of the content."""
        ...

    def hexdigest(self) -> str:
        """That of all so far."""
        ...


def is_digest(name: str) -> bool:
    """Whether a blob's name tells its content."""
    return bool(_SHA256.fullmatch(name) or _GIT.fullmatch(name))


def blob_of(path: Path) -> Path:
    """The blob that a file of a snapshot is a link to; the file itself on systems without links."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def digest_for(name: str, size_bytes: int) -> Digest:
    """What works out the name of a blob of that size."""
    if _SHA256.fullmatch(name):
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)


def is_whole(path: Path, name: str, size_bytes: int, moved: Moved = lambda count: None) -> bool:
    """Whether a file has the size and the content that the blob of this name has. Raises OSError."""
    if not path.is_file() or path.stat().st_size != size_bytes:
        return False
    digest, piece = digest_for(name, size_bytes), memoryview(bytearray(PIECE_BYTES))
    with path.open("rb") as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            moved(count)
    return digest.hexdigest() == name
