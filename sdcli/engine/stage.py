"""What every stage has in common: it is announced, timed and left clean, and its result is finite."""

from __future__ import annotations

import time

import torch

from sdcli.devices.base import Device
from sdcli.domain import StageName
from sdcli.errors import NotFinite, NotFiniteInHalf
from sdcli.messages import StageBegan, StageEnded, StageLoaded

SANE_LATENTS = 1e4
"""Latents have a deviation of about 1, and before the first step of some schedulers one of about 150."""


class Clock:
    """The clock of one stage: `began`, then `loaded`, then `ended`, each a message for the host."""

    def __init__(self, name: StageName, device: Device) -> None:
        self.name, self._device = name, device

    def began(self) -> StageBegan:
        """Start the clock and a new peak."""
        self._device.reset_peak()
        self._at = time.perf_counter()
        return StageBegan(self.name)

    def loaded(self, kept: bool = False) -> StageLoaded:
        """The weights are in place, or what they would give was `kept`."""
        return StageLoaded(self.name, self._lap(), kept)

    def ended(self) -> StageEnded:
        """The work is done and the component is freed: call it outside the loan."""
        peak_bytes = self._device.peak_bytes()
        self._device.release()
        return StageEnded(self.name, self._lap(), peak_bytes)

    def _lap(self) -> float:
        self._device.synchronize()
        now = time.perf_counter()
        lap, self._at = now - self._at, now
        return lap


def is_finite(values: torch.Tensor) -> bool:
    """Whether no number is NaN or infinity: turned into pixels they would silently be black."""
    return bool(torch.isfinite(values).all())


def not_finite(stage: StageName, dtype: torch.dtype, culprit: str) -> NotFinite:
    """The error for numbers that are none: in half precision the type may be to blame, in FP32 it is `culprit`."""
    if dtype is torch.float32:
        return NotFinite(f"NaN or infinity came out of the stage {stage}: {culprit}")
    return NotFiniteInHalf(f"NaN or infinity came out of the stage {stage} in {str(dtype).removeprefix('torch.')}")


def blown_up(latents: torch.Tensor, stage: StageName) -> NotFinite | None:
    """The error where latents had grown beyond all measure before a model saw them: then it is not to blame."""
    largest = latents.abs().max().item()
    if largest <= SANE_LATENTS:
        return None
    return NotFinite(
        f"NaN or infinity came out of the stage {stage}: the latents had grown to {largest:.0e} before it;"
        " lower --guidance, or the scheduler's settings are wrong"
    )
