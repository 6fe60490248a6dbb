"""What transformers that go by flow matching (Lipman et al. 2022, https://arxiv.org/abs/2210.02747) have in common.

Their weights are used by the slice, their attention is bounded, and what the time of a step does to their layers goes
through a good share of the weights but depends on nothing else: it is computed for several steps at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.domain import Component
from sdcli.weights.borrow import Borrow
from sdcli.weights.lent import Lent

FORESEEN = 8
"""Steps whose modulations are computed at once: their weights, a part in 25 to 50 of all, are read as often less."""

Modulation = TypeVar("Modulation")
"""What a time does to the layers of one model."""


@dataclass(slots=True)
class FlowDenoiser(ABC, Generic[Modulation]):
    """A borrowed transformer, that remembers what the times of steps do. `lent` counts what it reads."""

    model: Any
    lent: Lent
    borrow: Borrow
    attention: BoundedAttention
    _times: list[float] = field(default_factory=list)
    _known: dict[float, Modulation] = field(default_factory=dict)

    @abstractmethod
    def modulations(self, times: torch.Tensor) -> list[Modulation]:
        """Those of several timesteps, (steps,) on the CPU: each with the same bits as alone."""
        ...

    def foresee(self, timesteps: torch.Tensor) -> None:
        """These timesteps are to come, in this order."""
        self._times = timesteps.tolist()

    def modulation(self, timestep: torch.Tensor) -> Modulation:
        """That of one timestep, computed with those to come."""
        (time,) = timestep.reshape(1).tolist()
        if time not in self._known:
            begin = self._times.index(time) if time in self._times else None
            times = [time] if begin is None else self._times[begin : begin + FORESEEN]
            if self.borrow.dry is not None:
                times = [time] * FORESEEN
            self._known = dict(zip(times, self.modulations(torch.tensor(times)), strict=True))
        return self._known[time]


Denoiser = TypeVar("Denoiser", bound=FlowDenoiser[Any])


@contextmanager
def borrow_flow(kind: type[Denoiser], model: nn.Module, component: Component, borrow: Borrow) -> Iterator[Denoiser]:
    """Lend a denoiser of this kind the weights of its model, which is on the meta device, and free it."""
    device = borrow.device
    attention = BoundedAttention(borrow.scratch_bytes, device.fused_attention(borrow.dtype), device.name == "cpu")
    with borrow.weights(model, component, sliced=nn.Linear) as lent, device.repeating():
        try:
            yield kind(model, lent, borrow, attention)
        finally:
            attention.free()
