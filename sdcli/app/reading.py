"""What a denoise step reads of weights that do not stay in memory, and how fast the disk that they lie on is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdcli.app.known import room_beside, room_for_files
from sdcli.app.means import Prospect
from sdcli.app.on_disk import files_of
from sdcli.domain import DTYPE_BYTES
from sdcli.models.disk_speed import reading_speed
from sdcli.models.disks import lies_in_memory
from sdcli.models.synthetic import is_outline
from sdcli.plan.planner import Planned
from sdcli.plan.remembered import change_table, number, read_table
from sdcli.weights.copies import WEIGHTS, is_made

_FILE, BELIEVED = "disks.json", (1e4, 1e13)
"""Bytes a second that a disk can have; a file may claim more."""

KEPT = 20
"""Disks whose speed is remembered."""


@dataclass(frozen=True, slots=True)
class Reads:
    """Bytes that a step reads, the disk's speed if it was measured, and what else a step takes."""

    step_bytes: int
    bytes_a_second: float | None
    arithmetic_s: float
    room_bytes: int | None = None
    """What the system's cache may keep, if it is known."""

    @property
    def disk_s(self) -> float | None:
        """What a step's reading takes where the system's cache keeps nothing of it."""
        return None if self.bytes_a_second is None else self.step_bytes / self.bytes_a_second

    @property
    def bound(self) -> Literal["disk", "arithmetic"] | None:
        """What takes longer: the two go on at the same time."""
        if self.disk_s is None:
            return None
        return "disk" if self.disk_s > self.arithmetic_s else "arithmetic"

    @property
    def stays_cached(self) -> bool:
        """Whether all of it may stay in the system's cache from one step to the next."""
        return self.room_bytes is None or self.step_bytes <= self.room_bytes

    @property
    def step_s(self) -> float:
        """What a step takes with its reading: where the cache keeps the weights, the disk is not asked."""
        return self.arithmetic_s if self.disk_s is None or self.stays_cached else max(self.disk_s, self.arithmetic_s)


def reads_of(prospect: Prospect, planned: Planned) -> Reads | None:
    """Those of a plan; None if all stays in memory, or lies there anyway."""
    task, plan, steps = prospect.task, planned.plan, prospect.subject.steps.name
    rows = [row for row in prospect.tables(plan)[steps] if not row.stays and row.use in ("matrix", "sliced")]
    copied = prospect.copy if plan.prepared else None
    step_bytes = 0.0
    for row in rows:
        origin = task.model.parts[row.part].weights()[row.name]
        item_bytes = origin.info.nbytes / origin.info.numel if copied is None else DTYPE_BYTES[task.dtype]
        step_bytes += origin.numel * item_bytes
    twice = task.request.guided and (plan.guidance == "sequential" or prospect.subject.by_slices)
    room_bytes = room_for_cache(prospect, planned)
    if prospect.posed is not None:
        if not step_bytes:
            return None
        disk = prospect.posed.machine.disk_bytes
        return Reads(int(step_bytes) * (2 if twice else 1), disk, planned.step_s, room_bytes)
    own = max(files_of(task.model), key=lambda path: path.stat().st_size)
    where = own if copied is None else copied / WEIGHTS
    if not step_bytes or lies_in_memory(where):
        return None
    samples = [where] if copied is not None and is_made(copied) else [] if is_outline(task.model) else [own]
    return Reads(int(step_bytes) * (2 if twice else 1), speed_of_disk(where, samples), planned.step_s, room_bytes)


def room_for_cache(prospect: Prospect, planned: Planned) -> int:
    """What the system may keep of files beside a plan's peak."""
    if prospect.posed is not None:
        return room_beside(planned.peak_bytes, prospect.posed.machine.memory_bytes)
    return room_for_files(planned.peak_bytes)


def reads_table(reads: Reads | None) -> dict[str, Any] | None:
    """As the JSON of a plan has it."""
    if reads is None:
        return None
    return {
        "step_bytes": reads.step_bytes,
        "disk_bytes_a_second": reads.bytes_a_second,
        "disk_s": reads.disk_s,
        "bound": reads.bound,
    }


def speed_of_disk(where: Path, samples: list[Path]) -> float | None:
    """The speed of the disk that a file lies on, or will: as it was measured once, else with a file that is there."""
    try:
        key = _key(next(path for path in (where, *where.parents) if path.exists()))
        known = number(read_table(_FILE).get(key), *BELIEVED)
        measured = known or next((reading_speed(sample) for sample in samples if _key(sample) == key), None)
    except OSError:
        return None
    if known is None and measured is not None:
        change_table(_FILE, lambda table: dict([*table.items(), (key, measured)][-KEPT:]))
    return measured


def _key(path: Path) -> str:
    """Names the disk: its number, and its size, since numbers are given anew."""
    size_bytes = 0
    if hasattr(os, "statvfs"):
        system = os.statvfs(path)
        size_bytes = system.f_blocks * system.f_frsize
    return f"{path.stat().st_dev} of {size_bytes}"
