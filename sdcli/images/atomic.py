"""Bytes into a folder: whole or not at all, and never over a file that someone else put there.

Refuses to know what the bytes are. A file is written under a temporary name, synced, and only then given
its own name by a hard link, which fails if the name is taken; then the folder is synced. On file systems without
links the name is reserved by an empty file first; a run killed between the two leaves that one empty.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress

STALE_SECONDS = 600
"""Younger temporaries are left alone: their writer may live on another machine."""

_TEMPORARY = re.compile(r"\.sdcli-(\d{1,9})-[0-9a-f]+\.tmp")


def place(folder: str, names: Iterable[str], data: bytes, *, replace: bool = False, again: bool = False) -> str:
    """Write `data` under the first of `names` that is free, or over the first with `replace`; returns its path.

    With `again` it may be there from a try that was cut off: under a name that has these very bytes, or under the only
    one without any.

    Raises FileExistsError if no name is free and OSError if it cannot be written; no temporary stays.
    """
    temporary = _write_temporary(folder, data)
    try:
        for name in names:
            path = os.path.join(folder, name)
            if replace or (again and _is_there(path, data, isinstance(names, list))):
                os.replace(temporary, path)
            elif not _claim(temporary, path):
                continue
            sync_folder(folder)
            return path
        raise FileExistsError("every name for it is taken")
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def probe(folder: str) -> None:
    """Create and delete a file in `folder`. Raises OSError if that fails.

    os.access is no help: it says yes to root and, on some systems, for a read-only mount.
    """
    os.unlink(_write_temporary(folder, b""))


def sync_folder(folder: str) -> None:
    """See to it that names in `folder` outlive a loss of power, where the system can do that."""
    with suppress(OSError):
        opened = os.open(folder or os.curdir, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def sweep(folder: str) -> None:
    """Delete the temporaries in `folder` that a killed run left behind. Never fails."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None:
                with suppress(OSError):
                    if _is_stale(entry, int(match[1])):
                        os.unlink(entry.path)


def sweep_of(pid: int, folder: str) -> None:
    """Delete the temporaries in `folder` that this process left behind, which is dead. Never fails."""
    with suppress(OSError), os.scandir(folder or os.curdir) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is not None and int(match[1]) == pid:
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_there(path: str, data: bytes, reserved: bool) -> bool:
    """Whether a regular file has these bytes, or none where the name may have been `reserved`."""
    with suppress(OSError):
        if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) not in (0, len(data)):
            return False
        with open(path, "rb") as file:
            found = file.read(len(data) + 1)
            return found == data or (reserved and not found)
    return False


def _is_stale(entry: os.DirEntry[str], pid: int) -> bool:
    # Costs 20 ms, and temporaries are rare.
    import psutil

    status = entry.stat(follow_symlinks=False)
    return time.time() - status.st_mtime > STALE_SECONDS and not psutil.pid_exists(pid)


def _write_temporary(folder: str, data: bytes) -> str:
    path = os.path.join(folder, f".sdcli-{os.getpid()}-{secrets.token_hex(6)}.tmp")
    # "x" rather than tempfile, whose files are readable to their owner alone.
    stream = open(path, "xb")  # noqa: SIM115  closed below, where what fails removes the file as well
    try:
        with stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    return path


def _claim(temporary: str, path: str) -> bool:
    """Give `temporary` the name `path` as well, or instead; False if that is taken."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    # Systems without links say so in a dozen ways; if it was something else, the next try hits it too.
    except (OSError, AttributeError):
        return _claim_without_links(temporary, path)
    return True


def _claim_without_links(temporary: str, path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    return True
