"""The autoencoder of FLUX.1: 16 channels, moved and scaled. Its two halves go band by band (blocks/bands.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sdcli.blocks.bands import DECODER_PARTS, ENCODER_PARTS, borrow_half
from sdcli.domain import Component
from sdcli.families.banded import bands_of
from sdcli.families.sd.autoencoder import build_autoencoder
from sdcli.weights.borrow import Borrow


@contextmanager
def borrow_decoder(component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from (1, channels, h, w) latents as the denoiser knows them to (1, 3, 8h, 8w) pixels in -1…1."""
    scale, shift = component.settings.scaling_factor, component.settings.shift_factor or 0.0
    with borrow_half(build_autoencoder(component), component, DECODER_PARTS, borrow) as vae:
        yield lambda latents: bands_of(borrow).decode(vae, latents / scale + shift)


@contextmanager
def borrow_encoder(
    component: Component, borrow: Borrow
) -> Iterator[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """Lend a function from (1, 3, 8h, 8w) pixels in -1…1 to mean and deviation of latents as the denoiser has them."""
    scale, shift = component.settings.scaling_factor, component.settings.shift_factor or 0.0
    with borrow_half(build_autoencoder(component), component, ENCODER_PARTS, borrow) as vae:

        def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            mean, deviation = bands_of(borrow).encode(vae, pixels)
            return (mean - shift) * scale, deviation * scale

        yield encode
