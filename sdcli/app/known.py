"""What is known of this machine from its runs, or from what is shipped: its baseline, speed and remainder."""

from __future__ import annotations

import os

from sdcli import machine
from sdcli.app.record import Task
from sdcli.messages import Ready
from sdcli.plan.baselines import VARYING_BYTES, remember_baseline, remembered_baseline, typical_bytes
from sdcli.plan.meter import TreeMeter
from sdcli.plan.remainder import ON_CUDA, WITH_AVX2, WITH_AVX512, WITH_AVX512_BF16, WITH_AVX512_IN_FP32, Remainder
from sdcli.plan.seconds import Speed
from sdcli.plan.speeds import remembered_speed, typical_speed
from sdcli.units import MIB

CUDA_KERNELS_BYTES = 176 * MIB
"""What the driver loads and libraries reserve when their kernels first run (benchmarks/RESULTS.md)."""


def held_bytes(task: Task) -> int:
    """What the host has of the picture that what is drawn is laid over: part of the memory that the ceiling covers."""
    canvas = task.canvas
    if canvas is None or task.device == "cuda":
        return 0
    return len(canvas.pixels) + len(canvas.share) + len(task.mask)


def known_baseline(task: Task) -> int | None:
    """What earlier runs measured before anything was loaded, and what this host has besides; None before the first."""
    remembered = remembered_baseline(task.device)
    return None if remembered is None else remembered + held_bytes(task)


def typical_baseline(task: Task) -> int:
    """The same before a first run."""
    return typical_bytes(task.device) + held_bytes(task)


def measured_baseline(task: Task, ready: Ready) -> int:
    """What is in use before anything is loaded, of the memory that the ceiling covers; remembered for the next run."""
    if task.device == "cuda":
        measured = ready.device_peak_bytes + CUDA_KERNELS_BYTES
    else:
        measured = TreeMeter(os.getpid()).footprint_bytes()
    remember_baseline(task.device, measured - held_bytes(task))
    return measured


def settled_baseline(task: Task, known_bytes: int | None, measured_bytes: int) -> int:
    """What a plan told beforehand went by, so that the plan stays the same, unless more was measured now."""
    told = known_bytes or min(typical_baseline(task), measured_bytes)
    return told if measured_bytes <= told + VARYING_BYTES else measured_bytes


def room_for_files(taken_bytes: int) -> int:
    """Memory beside what a run takes and an eighth for others: what the system may keep of files."""
    return room_beside(taken_bytes, machine.container_limit_bytes() or machine.physical_memory_bytes())


def room_beside(taken_bytes: int, has_bytes: int) -> int:
    """The same on a machine or in a container that has so much."""
    return max(0, has_bytes - taken_bytes - has_bytes // 8)


def unknown_speed(task: Task) -> bool:
    """Whether nobody has found out yet how fast this machine computes in the task's type."""
    return remembered_speed(task.device, task.dtype, task.threads) is None


def speed_of(task: Task) -> Speed:
    """What earlier runs measured, or what is typical of the device and type."""
    return remembered_speed(task.device, task.dtype, task.threads) or typical_speed(task.device, task.dtype)


def shipped_remainder(task: Task) -> tuple[Remainder, bool]:
    """The remainder of this kind of processor or of the nearest, and whether it was measured on it.

    That of Apple's GPUs is Intel's matrix unit's.
    """
    if task.device == "cuda":
        return ON_CUDA, True
    if task.device != "cpu":
        return WITH_AVX512, True
    measured = machine.cpu_is_measured(task.dtype)
    if not machine.cpu_batches():
        return WITH_AVX2, measured
    if measured and task.dtype == "fp32":
        return WITH_AVX512_IN_FP32, measured
    return WITH_AVX512_BF16 if measured and not machine.cpu_has_amx() else WITH_AVX512, measured


def remainder_key(task: Task) -> str:
    """What a learned remainder is kept under."""
    by = "" if task.threads is None else f" {task.threads} threads"
    return f"{task.device} {task.dtype} torch {machine.torch_version()}{by}"
