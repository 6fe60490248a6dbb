"""The denoiser, borrowed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

from sdcli.blocks.rotary import rotations
from sdcli.domain import Component
from sdcli.families.flows.denoiser import FlowDenoiser, borrow_flow
from sdcli.families.flux2.transformer import Modulation, Pass, modulations
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build


@dataclass(slots=True)
class Denoiser(FlowDenoiser[Modulation]):
    """A borrowed transformer."""

    def modulations(self, times: torch.Tensor) -> list[Modulation]:
        """See `FlowDenoiser`."""
        return modulations(self.model, times.to(self.borrow.device.torch_device), self.borrow.dtype)

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
        modulation = self.modulation(timestep)
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


def borrow_denoiser(component: Component, borrow: Borrow) -> AbstractContextManager[Denoiser]:
    """Lend the denoiser, and free it."""
    return borrow_flow(Denoiser, build_transformer(component), component, borrow)
