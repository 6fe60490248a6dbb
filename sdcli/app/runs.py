"""Where runs have their folders, which of them are in use, and which go: `runs/<id>/` in the cache.

A run holds a lock on its folder that dies with its process. Locks are advice: where a file system has none, a folder
that was written to in the last day counts as in use.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdcli.app.own_files import read_own, require_own_folder
from sdcli.errors import SdcliError
from sdcli.settings import cache_dir
from sdcli.units import MIB

DAY_S = 24 * 3600.0

LOCK = "lock"

RUN_FILE = "job.json"
"""The run file: what a run is to do (app/run_file.py)."""

RUN_FILE_BYTES = 4 * MIB
"""Of that at most: three texts of 64 KiB, each byte of which may take six."""

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


def new_folder() -> Path | None:
    """A folder for a run, for this user's eyes alone: in the cache, else where temporary files go; None for neither."""
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    try:
        folder = runs_folder() / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
        return folder
    except (OSError, SdcliError):
        with suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="sdcli-run-"))
    return None


def outlasts(folder: Path) -> bool:
    """Whether the folder is where a later run looks for it."""
    with suppress(SdcliError):
        return folder.parent == runs_folder()
    return False


def take_lock(folder: Path) -> int | None:
    """The descriptor of a lock on a new folder, to be closed at the end; None where there are no locks."""
    with suppress(OSError):
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        if sys.platform != "win32":  # where a file that is open cannot be deleted
            import fcntl

            with suppress(OSError):
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return opened
    return None


def sign(lock: int) -> None:
    """Note in a lock that this process has it."""
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)


def last_holder(lock: int) -> int | None:
    """The process that had it last, if it is known and dead."""
    import psutil  # costs 20 ms

    with suppress(OSError, ValueError):
        pid = int(os.pread(lock, 16, 0))
        return pid if pid > 0 and not psutil.pid_exists(pid) else None
    return None


def hold(folder: Path) -> int | None:
    """The descriptor of a lock on a dead run's folder; None while it is in use, or may be."""
    if sys.platform == "win32":
        return None if _is_recent(folder) else take_lock(folder)
    import fcntl

    try:
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # it has none yet, or is not ours
        return None if _is_recent(folder) else take_lock(folder)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(opened).st_nlink:  # whoever had it may have deleted it
            return opened
    except BlockingIOError:
        pass
    except OSError:
        if not _is_recent(folder):
            return opened
    os.close(opened)
    return None


def run_folders() -> list[Path]:
    """All that are this user's, the newest first."""
    found = list[Path]()
    with suppress(OSError, SdcliError):
        for path in sorted(runs_folder().iterdir(), reverse=True):
            with suppress(OSError):
                if _ID.fullmatch(path.name):
                    require_own_folder(path)
                    found.append(path)
    return found


def models_in_use() -> Iterator[Path]:
    """Where the models lie that runs are drawing with, as far as their folders tell."""
    for folder in run_folders():
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            if is_in_use(folder):
                yield Path(json.loads(read_own(folder / RUN_FILE, RUN_FILE_BYTES))["task"]["model"]["sources"]["path"])


def is_in_use(folder: Path) -> bool:
    """Whether another process has the folder, or may have."""
    lock = hold(folder)
    if lock is not None:
        os.close(lock)
    return lock is None


def last_use(folder: Path) -> float:
    """Of a folder: each file that is put in its place there is a use."""
    return folder.stat().st_mtime


def size_bytes_of(folder: Path) -> int:
    """Of its files."""
    return sum(path.lstat().st_size for path in folder.iterdir())


def runs_folder() -> Path:
    """The home of all."""
    return cache_dir() / "runs"


def _is_recent(folder: Path) -> bool:
    return time.time() - last_use(folder) < DAY_S
