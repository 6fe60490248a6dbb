"""CUDA: the GPU has memory of its own, and the ceiling covers that."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager, nullcontext

import torch

from sdcli.devices.base import AHEAD_BYTES, PooledWeights, WeightStore
from sdcli.domain import DeviceName
from sdcli.errors import SdcliError
from sdcli.machine import gpu_used_bytes
from sdcli.units import MIB

LAZY_BYTES = 96 * MIB
"""What the driver adds to its context while kernels are first used: 80 MiB for a whole run on an H100."""


class CudaDevice:
    """Arithmetic on the first NVIDIA GPU.

    Memory on the GPU is what torch's allocator holds plus the driver's context, which only the driver's own
    count shows and which grows a little with use.
    """

    name: DeviceName = "cuda"
    torch_device = torch.device("cuda", 0)
    memory_format = torch.channels_last
    ahead_bytes = AHEAD_BYTES

    def __init__(self) -> None:
        self._others_bytes = 0
        self._context_bytes = 0

    def describe(self) -> str:
        """The GPU's name."""
        return torch.cuda.get_device_name(0)

    def prepare(self, limit_bytes: int | None) -> None:
        """Make the context, count what it takes, and cap the allocator at what is left under the ceiling."""
        self._others_bytes = gpu_used_bytes()
        try:
            torch.cuda.init()
            torch.zeros(1, device=self.torch_device)
        except (RuntimeError, AssertionError) as error:
            raise SdcliError(
                f"CUDA cannot be used: {(str(error).splitlines() or [type(error).__name__])[0]}; try --device cpu"
            ) from error
        torch.cuda.empty_cache()
        _, total = torch.cuda.mem_get_info(0)
        self._see_context()
        if limit_bytes is not None:
            share = max(0, limit_bytes - self._context_bytes - LAZY_BYTES) / total
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), 0)

    def _see_context(self) -> None:
        """The most that the context was seen to take, as far as other programs keep still meanwhile."""
        seen = gpu_used_bytes() - self._others_bytes - torch.cuda.memory_reserved(0)
        self._context_bytes = max(self._context_bytes, seen)

    def fused_attention(self, dtype: torch.dtype) -> bool:
        """Always."""
        return True

    def weight_store(self, dtype: torch.dtype, numels: list[int]) -> WeightStore:
        """One pool."""
        return PooledWeights(self.torch_device, dtype, numels)

    def repeating(self) -> AbstractContextManager[None]:
        """The allocator keeps what is freed anyway."""
        return nullcontext()

    def exact(self) -> AbstractContextManager[None]:
        """The allocator keeps what is freed anyway."""
        return nullcontext()

    def between_blocks(self) -> None:
        """Nothing: the allocator keeps to its cap by itself."""

    def synchronize(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(0)

    def release(self) -> None:
        """Collect cycles and return the allocator's free blocks."""
        gc.collect()
        torch.cuda.synchronize(0)
        torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        """The driver's context and the most that the allocator held."""
        self._see_context()
        return self._context_bytes + torch.cuda.max_memory_reserved(0)

    def reset_peak(self) -> None:
        """Start a new peak."""
        torch.cuda.reset_peak_memory_stats(0)
