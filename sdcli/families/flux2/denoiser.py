"""The denoiser, borrowed: its weights by the slice, its attention bounded, what the time alone decides remembered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.rotary import rotations
from sdcli.domain import Component
from sdcli.families.flux2.transformer import Modulation, Pass, modulations
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build
from sdcli.weights.lent import Lent

FORESEEN = 8
"""Steps whose modulations are computed at once: their weights, a part in 25 of all, are read as often less."""


@dataclass(slots=True)
class Denoiser:
    """A borrowed transformer. `lent` counts what it reads."""

    model: Flux2Transformer2DModel
    lent: Lent
    borrow: Borrow
    attention: BoundedAttention
    _times: list[float] = field(default_factory=list)
    _known: dict[float, Modulation] = field(default_factory=dict)

    def foresee(self, timesteps: torch.Tensor) -> None:
        """These timesteps are to come, in this order."""
        self._times = timesteps.tolist()

    def __call__(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """The model's output for (batch, channels, h, w) latents on the CPU in FP32: the same shape, place and type.

        Samples go one at a time, so that each has the same bits with and without others.
        """
        output = torch.empty_like(latents, memory_format=torch.contiguous_format)
        modulation = self._modulation(timestep)
        for index, tokens in enumerate(conditioning["tokens"]):
            others = {name: conditioning[name][index] for name in ("references", "places") if name in conditioning}
            output[index] = self._pass(latents[index], tokens, others, modulation)
        return output

    def _pass(
        self, latents: torch.Tensor, tokens: torch.Tensor, others: Mapping[str, torch.Tensor], modulation: Modulation
    ) -> torch.Tensor:
        device, dtype = self.borrow.device.torch_device, self.borrow.dtype
        channels, height, width = latents.shape
        patches = latents.flatten(1).T
        places = [_grid(1, 1, len(tokens)), places_of(height, width)]
        if others:
            patches = torch.cat([patches, others["references"].to(patches)])
            places.append(others["places"])
        config = self.model.config
        there = torch.cat([one.to(device) for one in places])
        turns = rotations(there, config.axes_dims_rope, config.rope_theta)
        go = Pass(self.model, modulation, self.attention, self.borrow.between)
        made = go(patches.to(device, dtype), tokens.to(device, dtype), turns, height * width)
        return made.to("cpu", torch.float32).T.view(channels, height, width)

    def _modulation(self, timestep: torch.Tensor) -> Modulation:
        (time,) = timestep.reshape(1).tolist()
        if time not in self._known:
            begin = self._times.index(time) if time in self._times else 0
            times = [time, *(self._times[begin + 1 : begin + FORESEEN] if time in self._times else ())]
            if self.borrow.dry is not None:
                times = [time] * FORESEEN
            given = torch.tensor(times, device=self.borrow.device.torch_device)
            made = modulations(self.model, given, self.borrow.dtype)
            self._known = dict(zip(times, made, strict=True))
        return self._known[time]


def places_of(height: int, width: int, picture: int = 0) -> torch.Tensor:
    """(tokens, 4): of which picture a token is, its row, its column, and 0, where a word has its number."""
    places = _grid(height, width, 1)
    places[:, 0] = picture
    return places


def _grid(*sides: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(1), *map(torch.arange, sides))


def build_transformer(component: Component) -> Flux2Transformer2DModel:
    """On the meta device."""
    return build(component, lambda: Flux2Transformer2DModel(**component.config))


@contextmanager
def borrow_denoiser(component: Component, borrow: Borrow) -> Iterator[Denoiser]:
    """Lend the denoiser, and free it."""
    model, device = build_transformer(component), borrow.device
    attention = BoundedAttention(borrow.scratch_bytes, device.fused_attention(borrow.dtype), device.name == "cpu")
    with borrow.weights(model, component, sliced=nn.Linear) as lent, device.repeating():
        try:
            yield Denoiser(model, lent, borrow, attention)
        finally:
            attention.free()
