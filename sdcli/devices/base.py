"""What the engine may ask of a device. Everything that differs between CPU, CUDA and MPS is behind this."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch

from sdcli.domain import DeviceName
from sdcli.units import MIB

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

AHEAD_BYTES = 32 * MIB
"""Of streamed weights to read before they are needed."""


class Device(Protocol):
    """One place to compute. `prepare` comes first, before anything is allocated there."""

    name: DeviceName
    torch_device: torch.device
    memory_format: torch.memory_format
    """Layout of activations that the device's convolutions like best."""
    ahead_bytes: int
    """How far ahead of the kernels streamed weights are read."""

    def describe(self) -> str:
        """The hardware, in words."""
        ...

    def prepare(self, limit_bytes: int | None) -> None:
        """Tell the device's allocator about the ceiling. Raises SdcliError when the device is unusable."""
        ...

    def weight_store(self, dtype: torch.dtype, numels: list[int]) -> WeightStore:
        """Room for resident weights of these many numbers each."""
        ...

    def fused_attention(self, dtype: torch.dtype) -> bool:
        """Whether the library's fused kernel is the faster attention here; it makes no score matrix either."""
        ...

    def repeating(self) -> AbstractContextManager[None]:
        """The work inside is the same over and over: memory that it frees, it will want again."""
        ...

    def exact(self) -> AbstractContextManager[None]:
        """What is made inside is soon gone, and what comes next has another size: nothing of it is to be left."""
        ...

    def between_blocks(self) -> None:
        """Called a dozen times a step, between pieces of work: give back what is cheap to give back."""
        ...

    def synchronize(self) -> None:
        """Wait until everything queued has run."""
        ...

    def release(self) -> None:
        """Give back to the system whatever is free."""
        ...

    def peak_bytes(self) -> int:
        """Most memory held on the device since `reset_peak`, where it has memory of its own; else 0."""
        ...

    def reset_peak(self) -> None:
        """Start a new peak."""
        ...


class WeightStore(Protocol):
    """Hands out tensors for resident weights."""

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """An uninitialised contiguous tensor."""
        ...


class PooledWeights:
    """One allocation for all resident weights: no gaps between them, and all of it goes back at once.

    Tensors begin at multiples of 64 bytes, a cache line.
    """

    ALIGN_BYTES = 64

    def __init__(self, device: torch.device, dtype: torch.dtype, numels: list[int]) -> None:
        self._align = self.ALIGN_BYTES // dtype.itemsize
        self._pool = torch.empty(sum(map(self._room, numels)), dtype=dtype, device=device)
        self._at = 0

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A view of the next free part of the pool."""
        numel = torch.Size(shape).numel()
        view = self._pool[self._at : self._at + numel].view(shape)
        self._at += self._room(numel)
        return view

    def _room(self, numel: int) -> int:
        return -(-numel // self._align) * self._align


class SeparateWeights:
    """One allocation a tensor, for devices whose buffers are limited in size."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of its own."""
        return torch.empty(shape, dtype=self._dtype, device=self._device)
