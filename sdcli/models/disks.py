"""Which file systems are memory: there a mapped page counts in the footprint, and a copy costs what it saves."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import psutil

from sdcli.domain import Model

_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}


@lru_cache(maxsize=256)
def lies_in_memory(path: Path) -> bool:
    """Whether the file or folder is on a RAM disk, or in the upper layer of an overlay that is on one."""
    whole = path.resolve()
    mounts = {Path(part.mountpoint): part for part in psutil.disk_partitions(all=True)}
    at = next((at for at in (whole, *whole.parents) if at in mounts), None)
    if at is None:
        return False
    kind, options = mounts[at].fstype, mounts[at].opts.split(",")
    upper = next((option.removeprefix("upperdir=") for option in options if option.startswith("upperdir=")), None)
    if kind == "overlay" and upper is not None:
        written = Path(upper) / whole.relative_to(at)
        return written != whole and written.exists() and lies_in_memory(written)
    return kind in _IN_MEMORY


def model_in_memory(model: Model) -> bool:
    """Whether any of the model's weights are on a RAM disk."""
    return any(lies_in_memory(file.path) for part in model.parts.values() for file in part.files)
