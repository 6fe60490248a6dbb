"""What every stage has in common: it is announced, timed and left clean, and its result is finite."""

from __future__ import annotations

import time

import torch

from sdcli.devices.base import Device
from sdcli.domain import StageName
from sdcli.errors import NotFinite
from sdcli.messages import StageBegan, StageEnded, StageLoaded


class Stage:
    """The clock of one stage: `began`, then `loaded`, then `ended`, each a message for the host."""

    def __init__(self, name: StageName, device: Device) -> None:
        self.name, self._device = name, device

    def began(self) -> StageBegan:
        """Start the clock and a new peak."""
        self._device.reset_peak()
        self._at = time.perf_counter()
        return StageBegan(self.name)

    def loaded(self) -> StageLoaded:
        """The weights are in place."""
        return StageLoaded(self.name, self._lap())

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


def require_finite(values: torch.Tensor, stage: StageName, hint: str) -> None:
    """Raise NotFinite when `values` has NaN or infinity: turned into pixels they would silently be black."""
    if not torch.isfinite(values).all():
        raise NotFinite(f"NaN or infinity came out of the stage {stage}: {hint}")
