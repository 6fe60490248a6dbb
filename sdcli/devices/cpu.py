"""The CPU: weights stay memory-mapped, and the heap gives back what is freed."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdcli.devices.base import AHEAD_BYTES, DTYPES, PooledWeights, WeightStore
from sdcli.domain import DeviceName
from sdcli.machine import attends_fused, container_limit_bytes
from sdcli.units import KIB, MIB

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

EXACT_BYTES = 64 * KIB
"""From this size on an allocation is a mapping of its own: it costs page faults, and is gone when it is freed."""

CACHE_BYTES, LITTLE_AHEAD_BYTES = 96 * MIB, 8 * MIB
"""A container's limit counts cached files: with less than this between it and the ceiling, what is read early drives
out what is needed first."""

REUSE_BYTES = 32 * MIB
"""The largest threshold glibc takes. Below it, freed memory stays in the heap for the next allocation."""


class CpuDevice:
    """Arithmetic on the CPU.

    Left alone, glibc's heap grows by 300 MiB of gaps while weights load and as much again while activations
    of all sizes come and go. So allocations are exact, except in the denoise loop, where the page faults would
    cost a third of the time: there the heap is reused, and its gaps are given back after each block. Its cache
    of small pieces is off from the start (host/worker.py).
    """

    name: DeviceName = "cpu"
    torch_device = torch.device("cpu")
    memory_format = torch.channels_last
    ahead_bytes = AHEAD_BYTES

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        if not hasattr(self._libc, "mallopt"):
            self._libc = None  # musl, macOS and Windows have no such dials
        self._mapped_from_bytes = EXACT_BYTES

    def describe(self) -> str:
        """Processor family and the threads that torch uses."""
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

    def prepare(self, limit_bytes: int | None) -> None:
        """Make the heap exact, and see what room a container has for cached files. The host watches the ceiling."""
        self._set_threshold(EXACT_BYTES)
        container = container_limit_bytes()
        if container is not None and container - (limit_bytes or container) < CACHE_BYTES:
            self.ahead_bytes = LITTLE_AHEAD_BYTES

    def fused_attention(self, dtype: torch.dtype) -> bool:
        """In fp32, and in bf16 with Intel's matrix unit; in bf16 without it, chunks into one scratch are faster."""
        return attends_fused("cpu", next(name for name, torch_dtype in DTYPES.items() if torch_dtype is dtype))

    def weight_store(self, dtype: torch.dtype, numels: list[int]) -> WeightStore:
        """One pool."""
        return PooledWeights(self.torch_device, dtype, numels)

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Reuse the heap inside."""
        self._set_threshold(REUSE_BYTES)
        try:
            yield
        finally:
            self._set_threshold(EXACT_BYTES)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Mappings of their own inside, though the work around it reuses the heap."""
        before = self._mapped_from_bytes
        self._set(_M_MMAP_THRESHOLD, EXACT_BYTES)
        try:
            yield
        finally:
            self._set(_M_MMAP_THRESHOLD, before)

    def between_blocks(self) -> None:
        """Hand the heap's free pages back to the system."""
        if self._libc is not None:
            self._libc.malloc_trim(0)

    def synchronize(self) -> None:
        """Nothing is ever queued."""

    def release(self) -> None:
        """Collect cycles, then as between blocks."""
        gc.collect()
        self.between_blocks()

    def peak_bytes(self) -> int:
        """The CPU has no memory of its own."""
        return 0

    def reset_peak(self) -> None:
        """Nothing to reset."""

    def _set_threshold(self, size_bytes: int) -> None:
        self._mapped_from_bytes = size_bytes
        self._set(_M_MMAP_THRESHOLD, size_bytes)
        self._set(_M_TRIM_THRESHOLD, size_bytes)

    def _set(self, parameter: int, size_bytes: int) -> None:
        if self._libc is not None:
            self._libc.mallopt(parameter, size_bytes)
