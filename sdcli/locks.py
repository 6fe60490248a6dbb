"""A lock file: one process of sdcli at a time, where several share a folder."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


class Held(Exception):
    """Another process has held the lock for as long as the caller waits."""


def lock(path: Path, wait_s: float = -1) -> BaseFileLock:
    """The lock at `path`, acquired; its holder releases it. It waits `wait_s` seconds, without end if that is negative.

    A file system without locks is locked by a file that is there or not, if filelock knows how.

    Raises:
        Held: another process has it.
        OSError: nothing can be locked there.
    """
    from filelock import FileLock, Timeout  # here, because it costs 2 MiB and is seldom needed

    try:
        with warnings.catch_warnings(action="ignore"):  # about a file system without locks
            found = FileLock(path, timeout=wait_s)
            found.acquire()
    except Timeout as error:
        raise Held(str(path)) from error
    except NotImplementedError as error:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path)) from error
    return found
