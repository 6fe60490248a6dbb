"""What this machine is and has, each finding with its reason; and a test of what it computes, in a watched worker."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from sdcli import machine, settings
from sdcli.app.known import known_baseline, measured_baseline, unknown_speed
from sdcli.app.learning import learn_flops
from sdcli.app.on_disk import files_of, models_on_disk
from sdcli.app.reading import speed_of_disk
from sdcli.app.record import Task
from sdcli.errors import SdcliError, echo
from sdcli.families.registry import family_of
from sdcli.host.watched import watched_worker
from sdcli.messages import Ready, SelfTest, SelfTested
from sdcli.models.disks import lies_in_memory
from sdcli.models.hub_ids import hub_cache
from sdcli.models.reference import resolve_model
from sdcli.plan.baselines import build_note
from sdcli.plan.speeds import remembered_speed
from sdcli.units import GIB, MIB, format_size

State = Literal["good", "note", "broken"]

COPIED_BYTES = 128 * MIB
"""Copied to find out how fast memory is, as far as the ceiling has room for four times that."""


LITTLE_BYTES = 1 * GIB
"""Of room on a disk, that is worth a look."""

SAME = 0.05
"""Speeds that differ by less are one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is so, and why; `note` is worth a look, with `broken` nothing can be drawn. `path` is a place on disk."""

    name: str
    value: str
    reason: str = ""
    state: State = "good"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a worker found: whether the arithmetic is right, and speeds in a second."""

    baseline_bytes: int
    flops: float
    learned_flops: float
    """That plans go by: what was measured first, and runs since have corrected."""
    differences: dict[str, float]
    allowed: float
    memory_bytes: float | None

    @property
    def wrong(self) -> list[str]:
        """Kinds of arithmetic that differ by too much."""
        return [name for name, difference in self.differences.items() if not difference <= self.allowed]


def machine_findings(task: Task, device_reason: str, dtype_reason: str) -> Iterator[Finding]:
    """Device, type, processor, memory and ceiling."""
    yield Finding("system", platform.platform(terse=True), f"{platform.machine()}, {' '.join(platform.libc_ver())}")
    yield Finding("processor", machine.cpu_name(), f"{os.cpu_count()} cores; {_units()}")
    yield Finding("device", task.device, device_reason)
    yield Finding("type", task.dtype, dtype_reason)
    has, container = machine.physical_memory_bytes(), machine.container_limit_bytes()
    within = f"; the container may have {format_size(container)}" if container is not None else ""
    free = format_size(psutil.virtual_memory().available)
    yield Finding("memory", format_size(has), f"{free} of it can be had now{within}")
    limit = task.ceiling.limit_bytes
    yield Finding("ceiling", "none" if limit is None else format_size(limit), task.ceiling.reason)
    if note := build_note(task.device):
        yield Finding("torch's build", machine.torch_gpu_build() or "", note, "note")


def _units() -> str:
    flags = [flag for flag in machine.cpu_vector_flags() if not flag.startswith(("sse", "fma"))]
    return ", ".join(flags) if flags else "no vector units that are told"


def folder_findings() -> Iterator[Finding]:
    """Where things are kept, whether they can be, and the room there is."""
    for name, find, without in (
        ("cache", settings.cache_dir, "nothing is remembered, and no synthetic model made"),
        ("Hub's cache", hub_cache, "models cannot be fetched"),
    ):
        try:
            folder = find()
            there = next(path for path in (folder, *folder.parents) if path.exists())
            free_bytes = shutil.disk_usage(there).free
            room = f"{format_size(free_bytes)} free"
            where = "" if there == folder else "; not there yet"
            memory = "; on a RAM disk: what it keeps is memory" if lies_in_memory(there) else ""
            if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
                state: State = "good" if free_bytes >= LITTLE_BYTES else "note"
                yield Finding(name, str(folder), f"{room}{where}{memory}", state)
            else:
                yield Finding(name, str(folder), f"it cannot be written in: {without}", "note")
        except (OSError, SdcliError, StopIteration) as error:
            yield Finding(name, "none", f"{error}: {without}", "note")


def disk_finding() -> Finding:
    """How fast the disk is read that models lie on."""
    try:
        where = next(path for path in (settings.cache_dir(), *settings.cache_dir().parents) if path.exists())
        speed = speed_of_disk(where, list(_large_files()))
    except (OSError, SdcliError, StopIteration):
        speed = None
    if speed is None:
        return Finding("disk", "not measured", "there is no large file on the cache's disk, or the system keeps it all")
    return Finding("disk", f"{format_size(int(speed))} a second", "reading what lies in no cache, on the cache's disk")


def _large_files() -> Iterator[Path]:
    """Of models, and of torch."""
    for entry in models_on_disk():
        if entry.family is not None:
            with suppress(SdcliError, OSError):
                yield max(files_of(resolve_model(str(entry.path), _never)), key=lambda path: path.stat().st_size)
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder, "lib").glob("*torch_c*"), key=lambda path: -path.stat().st_size)
        yield from found[:1]


def _never(name: str, folder: Path) -> None:
    raise SdcliError(f"{echo(name)} is not there")


def measure(task: Task) -> Measured:
    """Have a worker test what the device computes, under the task's ceiling; what it tells is remembered, as of a run.

    Raises SdcliError where that ends badly, WillNotFit where the ceiling is too low for any worker.
    """
    limit_bytes, dtype = task.ceiling.limit_bytes, task.dtype
    network, flops, baseline_bytes = family_of(task.model).network, 0.0, 0
    with watched_worker(network, task.device, limit_bytes, dtype, task.debug, task.threads) as watched:
        for message in watched.messages():
            if isinstance(message, Ready):
                flops = message.flops or 0.0
                baseline_bytes = known_baseline(task) or measured_baseline(task, message)
                if unknown_speed(task):
                    learn_flops(task, message.flops)
                room = COPIED_BYTES * 4 if limit_bytes is None else limit_bytes - baseline_bytes
                watched.worker.send(SelfTest(dtype, min(COPIED_BYTES, max(0, room // 4))))
            elif isinstance(message, SelfTested):
                known = remembered_speed(task.device, dtype, task.threads)
                learned = flops if known is None else known.flops
                right = message.differences, message.allowed, message.memory_bytes
                return Measured(baseline_bytes, flops, learned, *right)
    raise SdcliError("the worker ended before its self-test")


def _is_busy() -> bool:
    """Whether other programs have had more than half of the cores of late."""
    try:
        return bool(os.getloadavg()[0] > (os.cpu_count() or 1) / 2)
    except (OSError, AttributeError):
        return False


def measured_findings(found: Measured) -> Iterator[Finding]:
    """What a worker found."""
    worst = max(found.differences.values())
    yield Finding("baseline", format_size(found.baseline_bytes), "Python and torch, before anything is loaded")
    plans = f"; plans go by {found.learned_flops / 1e9:.0f}, as runs have shown"
    same = abs(found.learned_flops / found.flops - 1) < SAME
    busy = "; other programs are at work: it may be more" if _is_busy() else ""
    why = f"of what a denoise step is made of, measured now{busy}{'' if same else plans}"
    yield Finding("arithmetic", f"{found.flops / 1e9:.0f} GFLOP/s", why)
    if found.memory_bytes is not None:
        speed = format_size(int(found.memory_bytes))
        yield Finding("memory's speed", f"{speed} a second", "reading and writing as one copies")
    if found.wrong:
        what = f"{' and '.join(found.wrong)} differ from FP32 by {worst:.2g} of the largest number"
        yield Finding("self-test", "wrong", f"{what}, {found.allowed:g} is allowed", "broken")
    else:
        kinds = ", ".join(found.differences)
        yield Finding("self-test", "right", f"{kinds}: within {worst:.1g} of FP32, {found.allowed:g} is allowed")
