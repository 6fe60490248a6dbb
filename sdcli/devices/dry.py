"""A device for runs without memory: what another one would be asked is answered as there, and nothing is held."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from sdcli.devices.base import Device, SeparateWeights, WeightStore


class DryDevice:
    """Stands for `device`. Its tensors have shapes and no numbers."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.name, self.memory_format, self.ahead_bytes = device.name, device.memory_format, device.ahead_bytes
        self.torch_device = torch.device("meta")

    def describe(self) -> str:
        """That of the device it stands for."""
        return self._device.describe()

    def prepare(self, limit_bytes: int | None) -> None:
        """Nothing to prepare."""

    def weight_store(self, dtype: torch.dtype, numels: list[int]) -> WeightStore:
        """Of no memory."""
        return SeparateWeights(self.torch_device, dtype)

    def fused_attention(self, dtype: torch.dtype) -> bool:
        """As on the device it stands for."""
        return self._device.fused_attention(dtype)

    def repeating(self) -> AbstractContextManager[None]:
        """Nothing is reused."""
        return nullcontext()

    def exact(self) -> AbstractContextManager[None]:
        """Nothing is left of anything."""
        return nullcontext()

    def between_blocks(self) -> None:
        """Nothing to give back."""

    def synchronize(self) -> None:
        """Nothing is ever queued."""

    def release(self) -> None:
        """Nothing to give back."""

    def peak_bytes(self) -> int:
        """None of its own."""
        return 0

    def reset_peak(self) -> None:
        """Nothing to reset."""
