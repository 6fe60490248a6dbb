"""Inpainting: what is outside the mask stays the init image's, in latents at every step.

With any model, after each step the places outside are put back: the init image's latents with noise as of the next
step (Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865; as diffusers' StableDiffusionInpaintPipeline does). A model
made for it is told of mask and surroundings by its family's network instead, and nothing is put back. The pixels
outside are the host's affair: it lays the drawn part over the init image's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sdcli.engine.schedulers import from_picture
from sdcli.engine.work import State, Work


@dataclass(frozen=True, slots=True)
class Outside:
    """The init image's `latents` and the `noise` that they begin with; `mask`, (1, 1, h, w), is 1 where they change."""

    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor

    def put_back(self, drawn: torch.Tensor, scheduler: Any, next_timestep: torch.Tensor) -> torch.Tensor:
        """What was `drawn` inside, and outside what was there, as noisy as at `next_timestep`: no noise after the last.

        `next_timestep` has one number or none.
        """
        known = self.latents
        if len(next_timestep):
            known = from_picture(scheduler, known, self.noise, next_timestep)
        return (1 - self.mask) * known + self.mask * drawn


def latent_mask(work: Work, state: State) -> torch.Tensor:
    """(1, 1, h, w), 1 where any pixel changes: all of it without a mask."""
    mask = state.get("pixels", {}).get("mask")
    if mask is None:
        return torch.ones(1, 1, *work.latents_shape[2:])
    return F.max_pool2d(mask, work.geometry.latent_factor)


def told_of_mask(work: Work, state: State, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What a model made for inpainting is told of one picture's mask, one row each; nothing for other models.

    It is a sample, so that each picture has its own: it is drawn after the noise, as diffusers does with every model.
    """
    if "surroundings" not in state:
        if work.request.masked:
            _ = torch.randn(work.latents_shape, generator=generator)
        return {}
    noise = torch.randn(work.latents_shape, generator=generator)
    told: dict[str, torch.Tensor]
    told = work.network.beside(work.model, state["surroundings"], latent_mask(work, state), noise)
    return told


def beside_rows(
    conditioning: Mapping[str, torch.Tensor], beside: Mapping[str, torch.Tensor]
) -> Mapping[str, torch.Tensor]:
    """The conditioning with what stands `beside` it, in as many rows."""
    if not beside:
        return conditioning
    rows = max(map(len, conditioning.values()))
    return {**conditioning, **{name: tensor.expand(rows, -1, -1, -1) for name, tensor in beside.items()}}
