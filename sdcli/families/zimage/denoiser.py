"""The denoiser, borrowed: what words are refined to is remembered."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

from sdcli.blocks.rotary import rotations
from sdcli.domain import Component
from sdcli.families.flows.denoiser import FlowDenoiser, borrow_flow
from sdcli.families.zimage.family import CHUNK
from sdcli.families.zimage.schema import PATCH
from sdcli.families.zimage.transformer import Modulation, Pass, Sample, modulations
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build

PROMPTS = 2
"""Whose refined words are kept: those of the picture, and of what it should not show."""


@dataclass(slots=True)
class Denoiser(FlowDenoiser[Modulation]):
    """A borrowed transformer."""

    _words: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Of the last prompts their words, and what they are refined to."""

    def modulations(self, times: torch.Tensor) -> list[Modulation]:
        """See `FlowDenoiser`: its own times go from 0 at noise to 1."""
        own = (1000 - times) / 1000
        return modulations(self.model, own.to(self.borrow.device.torch_device), self.borrow.dtype)

    def __call__(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """The model's output for (batch, channels, h, w) latents on the CPU in FP32: the same shape, place and type.

        Each sample has the same bits with and without others. What the network tells is the way to the picture, and
        schedulers want that to noise.
        """
        go = Pass(self.model, self.modulation(timestep), self.attention, self.borrow.between)
        every = [
            self._sample(go, sample, tokens if self.borrow.dry is not None else tokens[: int(length)])
            for sample, tokens, length in zip(latents, conditioning["tokens"], conditioning["lengths"], strict=True)
        ]
        output = torch.empty_like(latents, memory_format=torch.contiguous_format)
        for index, made in enumerate(go(every)):
            output[index] = _put_together(made.to("cpu", torch.float32), latents.shape[1:]).neg_()
        return output

    def _sample(self, go: Pass, latents: torch.Tensor, words: torch.Tensor) -> Sample:
        device, dtype = self.borrow.device.torch_device, self.borrow.dtype
        rows, columns = latents.shape[1] // PATCH, latents.shape[2] // PATCH
        patches = _cut(latents).to(device, dtype)
        words_at, length = _filled(rows * columns), _filled(len(words))
        places = torch.zeros(words_at + length, 3, dtype=torch.long)
        places[: rows * columns] = torch.cartesian_prod(
            torch.tensor([length + 1]), torch.arange(rows), torch.arange(columns)
        )
        places[words_at:, 0] = torch.arange(1, length + 1)
        config = self.model.config
        turns = rotations(places, config.axes_dims, config.rope_theta).to(device)
        return Sample(patches, self._refined(go, words, turns[words_at:]), turns, words_at)

    def _refined(self, go: Pass, words: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Words as the layers take them: computed once for all steps, and kept for as long as the words are there."""
        for known, refined in self._words:
            if self.borrow.dry is None and (known.data_ptr(), known.shape) == (words.data_ptr(), words.shape):
                return refined
        refined = go.refined(words.to(self.borrow.device.torch_device, self.borrow.dtype), turns)
        self._words = [(words, refined), *self._words][:PROMPTS]
        return refined


def _filled(tokens: int) -> int:
    return -(-tokens // CHUNK) * CHUNK


def _cut(latents: torch.Tensor) -> torch.Tensor:
    """(channels, h, w) to patches, (h/2 w/2, 2 x 2 x channels)."""
    parted = latents.unflatten(2, (-1, PATCH)).unflatten(1, (-1, PATCH))  # channels, rows, 2, columns, 2
    return parted.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)


def _put_together(patches: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The other way: to `shape`."""
    channels, height, width = shape
    parted = patches.view(height // PATCH, width // PATCH, PATCH, PATCH, channels)
    return parted.permute(4, 0, 2, 1, 3).reshape(channels, height, width)


def build_transformer(component: Component) -> ZImageTransformer2DModel:
    """On the meta device."""
    return build(component, lambda: ZImageTransformer2DModel(**component.config))


def borrow_denoiser(component: Component, borrow: Borrow) -> AbstractContextManager[Denoiser]:
    """Lend the denoiser, and free it."""
    return borrow_flow(Denoiser, build_transformer(component), component, borrow)
