"""Where runs have their folders, which of them are in use, and which go: `runs/<id>/` in the cache.

A run holds a lock on its folder that dies with its process. What a killed run leaves is kept for a while. Locks are
advice: where a file system has none, a folder that was written to in the last day counts as in use.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.settings import cache_dir
from sdcli.units import GIB

CAP_BYTES = GIB
"""All folders of dead runs together take no more: the oldest go first."""

KEPT_S = 14 * 24 * 3600.0
"""A dead run's folder that is older goes."""

RECENT_S = 24 * 3600.0

LOCK = "lock"

JOB = "job.json"
"""What a run is to do."""

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")


def new_folder() -> Path | None:
    """A folder for a run, for this user's eyes alone: in the cache, else where temporary files go; None for neither."""
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
    try:
        folder = _runs() / name
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
        return folder.parent == _runs()
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


def sweep() -> None:
    """Delete folders of dead runs that are old, or beyond the cap. Never fails."""
    with suppress(OSError, SdcliError):
        dead = [path for path in _runs().iterdir() if _ID.fullmatch(path.name) and path.is_dir() and not _in_use(path)]
        total_bytes, now = 0, time.time()
        for folder in sorted(dead, key=_last_use, reverse=True):
            total_bytes += _size_bytes(folder)
            if total_bytes > CAP_BYTES or now - _last_use(folder) > KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def models_in_use() -> Iterator[Path]:
    """Where the models lie that runs are drawing with, as far as their folders tell."""
    with suppress(OSError, SdcliError):
        for folder in [path for path in _runs().iterdir() if _ID.fullmatch(path.name) and _in_use(path)]:
            with suppress(OSError, ValueError, LookupError, TypeError):
                yield Path(json.loads((folder / JOB).read_bytes())["model"]["path"])


def _runs() -> Path:
    return cache_dir() / "runs"


def _in_use(folder: Path) -> bool:
    recent = time.time() - _last_use(folder) < RECENT_S
    if sys.platform == "win32":
        return recent
    import fcntl

    try:
        opened = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # it has none yet, or is not ours
        return recent
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return recent
    finally:
        os.close(opened)


def _last_use(folder: Path) -> float:
    """Of a folder: each file that is put in its place there is a use."""
    return folder.stat().st_mtime


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
