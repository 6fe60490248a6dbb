"""What the program weighs before it loads anything, as measured by earlier runs of these very versions.

Remembered in the cache, so that a request that cannot fit is refused at once and with the right figures. A
memory that is missing or cannot be written only means that a worker is asked, which takes seconds.
"""

from __future__ import annotations

import sys
from importlib import metadata

from sdcli import __version__
from sdcli.host.remembered import Table, change_table, number, read_table
from sdcli.units import GIB, MIB

TYPICAL_BYTES = 172 * MIB
"""Measured on Linux, x86: 14 MiB of host, 115 of Python and torch, the rest the model classes."""

HOPELESS_BYTES = 150 * MIB
"""Under a ceiling like this no worker need be asked."""

BELIEVED_BYTES = 50 * MIB, 4 * GIB
"""No less and no more is ever believed of a file."""

_FILE = "baseline.json"


def remembered_baseline(device: str) -> int | None:
    """Bytes measured last on this device with these versions, or None."""
    measured = number(read_table(_FILE).get(_key(device)), *BELIEVED_BYTES)
    return measured if isinstance(measured, int) else None


def remember_baseline(device: str, baseline_bytes: int) -> None:
    """Keep the least that was measured; other versions' are forgotten."""

    def change(table: Table) -> Table:
        known = {_key(name): number(table.get(_key(name)), *BELIEVED_BYTES) for name in ("cpu", "cuda", "mps")}
        known[_key(device)] = min(baseline_bytes, known[_key(device)] or baseline_bytes)
        return {name: measured for name, measured in known.items() if measured}

    change_table(_FILE, change)


def _key(device: str) -> str:
    libraries = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"{device}: sdcli {__version__} python {sys.version.split()[0]} {libraries}"
