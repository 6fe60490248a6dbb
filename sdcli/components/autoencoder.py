"""The two halves of the autoencoder, borrowed one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from sdcli.components.attention import BoundedAttention
from sdcli.components.empty import without_memory
from sdcli.components.frugal import make_frugal
from sdcli.components.weights import lend_weights
from sdcli.devices.base import Device
from sdcli.models.folder import Component
from sdcli.units import MIB

DECODER_PARTS = ("decoder.", "post_quant_conv.")
SCRATCH_BYTES = 8 * MIB
"""Whatever the plan: it runs once a picture, and in half precision another number of rows may round otherwise."""

ENCODER_PARTS = ("encoder.", "quant_conv.")


@contextmanager
def borrow_decoder(
    component: Component, device: Device, dtype: torch.dtype
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from (1, channels, h, w) latents as the denoiser knows them to (1, 3, 8h, 8w) pixels in -1…1.

    Its weights stream: each is used once a picture, so keeping them would cost memory and save nothing.
    """
    with _half(component, DECODER_PARTS, device, dtype) as vae:

        def decode(latents: torch.Tensor) -> torch.Tensor:
            scaled = (latents / component.config.get("scaling_factor", 0.18215)).to(device.torch_device, dtype)
            placed = scaled.contiguous(memory_format=device.memory_format)
            pixels: torch.Tensor = vae.decode(placed, return_dict=False)[0]
            return pixels.to("cpu", torch.float32).contiguous()

        yield decode


@contextmanager
def borrow_encoder(
    component: Component, device: Device, dtype: torch.dtype
) -> Iterator[Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """Lend a function from (1, 3, 8h, 8w) pixels in -1…1 to the mean and deviation of their latents, unscaled."""
    with _half(component, ENCODER_PARTS, device, dtype) as vae:

        def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            placed = pixels.to(device.torch_device, dtype).contiguous(memory_format=device.memory_format)
            posterior = vae.encode(placed, return_dict=False)[0]
            return posterior.mean.to("cpu", torch.float32), posterior.std.to("cpu", torch.float32)

        yield encode


@contextmanager
def _half(component: Component, parts: tuple[str, ...], device: Device, dtype: torch.dtype) -> Iterator[AutoencoderKL]:
    with without_memory():
        vae = AutoencoderKL(**component.config).eval()
    attention = BoundedAttention(SCRATCH_BYTES)
    vae.set_attn_processor(attention)
    make_frugal(vae)
    with lend_weights(vae, component, device, dtype, parts=parts):
        try:
            yield vae
        finally:
            attention.free()
