"""Files of a run's folder: read as if a stranger had put them there, written whole or not at all.

What checks them by digest as well finds out a file that was half there when the power went.
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from sdcli.images.atomic import sync_folder

DIGEST_BYTES = 32


def sealed(data: bytes) -> bytes:
    """`data` behind its sha256."""
    return hashlib.sha256(data).digest() + data


def unsealed(raw: bytes) -> bytes:
    """What was sealed. Raises ValueError for what is not whole."""
    data = raw[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != raw[:DIGEST_BYTES]:
        raise ValueError("it is damaged")
    return data


def require_own_folder(folder: Path) -> None:
    """Raises PermissionError for a link, or a folder that another user owns or may write to."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or not _is_own(status) or (os.name == "posix" and status.st_mode & 0o022):
        raise PermissionError("it is not this user's alone")


def read_own(path: Path, most_bytes: int) -> bytes:
    """A regular file of this user's. Raises OSError for a link, a pipe or another user's, ValueError if too large."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(opened, "rb") as file:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or not _is_own(status):
            raise PermissionError("it is not a file of this user's")
        raw = file.read(most_bytes + 1) if status.st_size <= most_bytes else None
    if raw is None or len(raw) > most_bytes:
        raise ValueError("it is too large")
    return raw


def write_own(path: Path, data: bytes, lasting: bool = False) -> bool:
    """Put a file in its place; whether that was possible. What is `lasting` outlives a loss of power."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb", buffering=0) as file:
            whole = file.write(data) == len(data)  # a full disk takes some of it
            if whole and lasting:
                os.fsync(file.fileno())
        if whole:
            os.replace(temporary, path)
            if lasting:
                sync_folder(str(path.parent))
            return True
    except OSError:
        pass
    with suppress(OSError):
        temporary.unlink()
    return False


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
