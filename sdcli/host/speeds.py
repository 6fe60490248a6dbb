"""How fast this machine is, as its runs have shown, remembered in the cache by device and type."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict

from sdcli import settings
from sdcli.memory.speed import Speed

_FILE = "speeds.json"

TYPICAL = {
    "cpu fp32": Speed(0.1e12, 1e9, 10e9),
    "cpu bf16": Speed(),
    "cuda fp16": Speed(45e12, 8e9),
    "cuda fp32": Speed(30e12, 8e9),
    "mps fp16": Speed(3e12, 4e9),
}
"""Before a first run: two cores of a server's processor with a matrix unit, an H100, and a guess at a laptop."""


def typical_speed(device: str, dtype: str) -> Speed:
    """Before anything was measured."""
    return TYPICAL.get(f"{device} {dtype}", Speed())


def remembered_speed(device: str, dtype: str) -> Speed | None:
    """What was measured on this device in this type, and runs have corrected."""
    try:
        table = json.loads((settings.cache_dir() / _FILE).read_text("utf-8"))[f"{device} {dtype}"]
        speed = Speed(**{name: float(value) for name, value in table.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return speed if all(math.isfinite(v) and v > 0 for v in asdict(speed).values()) else None


def remember_speed(device: str, dtype: str, speed: Speed) -> None:
    """Keep it for the next plan; a cache that cannot be written only means that the next one is less exact."""
    path = settings.cache_dir() / _FILE
    table = {}
    with contextlib.suppress(OSError, ValueError):
        table = json.loads(path.read_text("utf-8"))
    if not isinstance(table, dict):
        table = {}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table | {f"{device} {dtype}": asdict(speed)}, indent=2) + "\n", "utf-8")
