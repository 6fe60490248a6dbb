"""The autoencoder of FLUX.2: 32 channels, put together 2 x 2 and normed by statistics of its own, 128 at 16 pixels.

Its two halves go band by band (blocks/bands.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2

from sdcli.blocks.bands import DECODER_PARTS, ENCODER_PARTS, borrow_half
from sdcli.domain import Component
from sdcli.families.banded import bands_of
from sdcli.families.flux2.parts import PATCH, statistics_of
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build
from sdcli.weights.source import numbers_at


@contextmanager
def borrow_decoder(component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from (1, 128, h, w) latents as the denoiser knows them to (1, 3, 16h, 16w) pixels in -1…1."""
    mean, deviation = _statistics(component, borrow)
    with borrow_half(build_autoencoder(component), component, DECODER_PARTS, borrow) as vae:
        yield lambda latents: bands_of(borrow).decode(vae, F.pixel_shuffle(latents * deviation + mean, PATCH))


@contextmanager
def borrow_encoder(component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from (1, 3, 16h, 16w) pixels in -1…1 to (1, 128, h, w) latents: the likeliest ones."""
    mean, deviation = _statistics(component, borrow)
    with borrow_half(build_autoencoder(component), component, ENCODER_PARTS, borrow) as vae:

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            likeliest, _ = bands_of(borrow).encode(vae, pixels)
            return (F.pixel_unshuffle(likeliest, PATCH) - mean) / deviation

        yield encode


def build_autoencoder(component: Component) -> AutoencoderKLFlux2:
    """On the meta device."""
    return build(component, lambda: AutoencoderKLFlux2(**component.config))


def _statistics(component: Component, borrow: Borrow) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel, (1, channels, 1, 1)."""
    if borrow.dry is not None:
        numbers = torch.ones(component.settings.latent_channels * PATCH**2, device="meta")
        return numbers[None, :, None, None], numbers[None, :, None, None]
    mean, variance = map(numbers_at, statistics_of(component))
    deviation = torch.sqrt(variance + component.settings.batch_norm_eps)
    return mean[None, :, None, None], deviation[None, :, None, None]
