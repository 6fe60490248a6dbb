"""Where a prepared copy of the denoiser's weights is or would be, and whether there can be one.

A copy is of one model, one type, one processor and one torch, and where layouts depend on it of one size: anything else
gets its own, in the place of the last. It costs as much disk as the
weights do, and is never made where that would leave the disk full. The worker makes it (components/prepared.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import psutil

from sdcli import machine, settings
from sdcli.domain import DeviceName, DtypeName, MapShape
from sdcli.memory.footprint import weights_of
from sdcli.models.folder import Model
from sdcli.units import GIB

LEFT_FREE_BYTES = 2 * GIB
"""Of the disk, for others."""

_LAYOUT = 3
"""Raised when copies made before can be used no more."""

_IN_MEMORY = {"tmpfs", "ramfs"}


def place_of_copy(model: Model, device: DeviceName, dtype: DtypeName, latent_shape: tuple[int, int]) -> Path | None:
    """The folder of the copy for this machine and size, there or still to be made; None where there can be none."""
    if device != "cpu" or not machine.cpu_packs_weights(dtype):
        return None
    try:
        return _place(model, dtype, machine.cpu_packs_for(*latent_shape))
    except OSError:  # the model, or the disk, has gone: whoever needs it will say so
        return None


def _place(model: Model, dtype: DtypeName, sees: MapShape) -> Path | None:
    whose = settings.cache_dir() / "prepared" / _digest(str(model.unet.folder.resolve()))
    folder = whose / f"{dtype}-{_key(model, sees)}"
    if folder.is_dir():
        return folder
    return folder if _has_room(folder, weights_of(model.unet, dtype).matrices_bytes) else None


def unfinished(folder: Path, worker_pid: int) -> Path:
    """Where a worker writes a copy before it is whole."""
    return folder.with_name(f"{folder.name}.{worker_pid}.part")


def outdated(folder: Path) -> list[Path]:
    """Copies of the same model and type for another torch, processor or size, and what dead workers left of theirs."""
    kind = folder.name.partition("-")[0]
    others = [path for path in folder.parent.glob(f"{kind}-*") if path != folder]
    return [
        path for path in others if not (path.suffix == ".part" and psutil.pid_exists(int(path.stem.split(".")[-1])))
    ]


def _key(model: Model, sees: MapShape) -> str:
    files = sorted({path for path, _, _ in model.unet.weights().values()})
    facts = [str(_LAYOUT), machine.torch_version(), *machine.cpu_vector_flags(), str(sees)]
    facts += [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return _digest(*facts)


def _digest(*facts: str) -> str:
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _has_room(folder: Path, size_bytes: int) -> bool:
    there = folder
    while not there.exists():
        there = there.parent
    return (
        os.access(there, os.W_OK)
        and _kind_of_disk(there) not in _IN_MEMORY
        and shutil.disk_usage(there).free > size_bytes * 9 // 8 + LEFT_FREE_BYTES
    )


def _kind_of_disk(path: Path) -> str:
    """The type of the file system that the path is on."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    whole = path.resolve()
    return next((mounts[at] for at in (whole, *whole.parents) if at in mounts), "")
