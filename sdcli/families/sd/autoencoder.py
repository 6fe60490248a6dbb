"""The two halves of the autoencoder, borrowed one at a time, and computed band by band (blocks/bands.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from sdcli.blocks.bands import DECODER_PARTS, ENCODER_PARTS, borrow_half
from sdcli.domain import Component
from sdcli.families.banded import bands_of
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build


@contextmanager
def borrow_decoder(component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from (1, channels, h, w) latents as the denoiser knows them to (1, 3, 8h, 8w) pixels in -1…1."""
    with borrow_half(build_autoencoder(component), component, DECODER_PARTS, borrow) as vae:
        yield lambda latents: bands_of(borrow).decode(vae, from_denoiser(component, latents))


@contextmanager
def borrow_encoder(
    component: Component, borrow: Borrow
) -> Iterator[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """Lend a function from (1, 3, 8h, 8w) pixels in -1…1 to the mean and deviation of their latents, unscaled."""
    with borrow_half(build_autoencoder(component), component, ENCODER_PARTS, borrow) as vae:
        yield lambda pixels: bands_of(borrow).encode(vae, pixels)


def from_denoiser(component: Component, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the autoencoder knows them, of those that the denoiser does."""
    settings = component.settings
    if settings.statistics is None:
        return latents / settings.scaling_factor
    mean, deviation = _for_each_channel(settings.statistics, latents)
    return latents * deviation / settings.scaling_factor + mean


def to_denoiser(component: Component, latents: torch.Tensor) -> torch.Tensor:
    """The other way."""
    settings = component.settings
    if settings.statistics is not None:
        mean, deviation = _for_each_channel(settings.statistics, latents)
        return (latents - mean) * settings.scaling_factor / deviation
    return latents * settings.scaling_factor


def _for_each_channel(
    statistics: tuple[Sequence[float], Sequence[float]], latents: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    mean, deviation = (torch.tensor(some, device=latents.device).view(1, -1, 1, 1) for some in statistics)
    return mean, deviation


def build_autoencoder(component: Component) -> AutoencoderKL:
    """On the meta device."""
    return build(component, lambda: AutoencoderKL(**component.config))
