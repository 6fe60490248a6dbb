"""What the program weighs before it loads anything, as measured by earlier runs of these very versions.

Remembered in the cache, so that a request that cannot fit is refused at once and with the right figures. A
memory that is missing or cannot be written only means that a worker is asked, which takes seconds.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import metadata

from sdcli import __version__, settings
from sdcli.units import MIB

TYPICAL_BYTES = 172 * MIB
"""Measured on Linux, x86: 14 MiB of host, 115 of Python and torch, the rest the model classes."""

HOPELESS_BYTES = 150 * MIB
"""Under a ceiling like this no worker need be asked."""

_FILE = "baseline.json"


def remembered_baseline(device: str) -> int | None:
    """Bytes measured last on this device with these versions, or None."""
    try:
        measured = json.loads((settings.cache_dir() / _FILE).read_text("utf-8"))[_key(device)]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return measured if isinstance(measured, int) and measured > 0 else None


def remember_baseline(device: str, baseline_bytes: int) -> None:
    """Keep the least that was measured; other versions' are forgotten."""
    baseline_bytes = min(baseline_bytes, remembered_baseline(device) or baseline_bytes)
    known = {name: remembered_baseline(name) for name in ("cpu", "cuda", "mps")} | {device: baseline_bytes}
    table = {_key(name): measured for name, measured in known.items() if measured}
    with contextlib.suppress(OSError):
        settings.cache_dir().mkdir(parents=True, exist_ok=True)
        (settings.cache_dir() / _FILE).write_text(json.dumps(table, indent=2) + "\n", "utf-8")


def _key(device: str) -> str:
    libraries = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"{device}: sdcli {__version__} python {sys.version.split()[0]} {libraries}"
