"""Small tables that runs leave for the next ones, in the cache: read with suspicion, changed whole and one at a time.

A table that is missing, damaged or somebody else's is an empty one, and one that cannot be written is not: what is
remembered only makes the next plan quicker or more exact.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdcli import settings
from sdcli.errors import SdcliError
from sdcli.locks import Held, lock
from sdcli.units import KIB

Table = dict[str, Any]

LIMIT_BYTES = 64 * KIB
"""A table of ours has some hundred bytes."""

WAIT_S = 2.0
"""So long another run may take to change a table before this one lets it be."""


def read_table(name: str) -> Table:
    """The table in the cache's file of this name; an empty one for anything that is not ours, small and JSON."""
    try:
        table = json.loads(_read(settings.cache_dir() / name))
    except (OSError, ValueError, RecursionError, SdcliError):
        return {}
    return table if isinstance(table, dict) else {}


def change_table(name: str, change: Callable[[Table], Table]) -> None:
    """Put the changed table in the place of the one that is there, unless it is the same."""
    with suppress(OSError, SdcliError):
        if change(read_table(name)) == read_table(name):
            return
        path = settings.cache_dir() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(path.with_name(f".{name}.lock"), WAIT_S)
        except Held:
            return
        except OSError:  # a file system without locks: the last one wins
            held = None
        try:
            _write(path, change(read_table(name)))
        finally:
            if held is not None:
                held.release()


def number(value: object, least: float, most: float) -> float | None:
    """`value` if it is a number within the bounds; everything else a file may hold is not believed."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
        return value
    return None


def _read(path: Path) -> str:
    """Raises OSError for a link, a pipe, a folder or another user's file, ValueError for one that is too large."""
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(opened, "rb") as file:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid not in (0, os.geteuid())):
            raise PermissionError("not a file of ours")
        raw = file.read(LIMIT_BYTES + 1)
    if len(raw) > LIMIT_BYTES:
        raise ValueError("too large")
    return raw.decode("utf-8")


def _write(path: Path, table: Table) -> None:
    opened, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(opened, "w", encoding="utf-8") as file:
            file.write(json.dumps(table, indent=2) + "\n")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
