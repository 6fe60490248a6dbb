"""A tiny autoencoder's decoder, borrowed, and computed a band of rows at a time (blocks/planes.py).

Nothing in it looks at a whole map, so that the largest one, 64 channels at the picture's size, is never there. Those of
the levels before are, one at a time, each block's output in the place of its input; in FP32 they lie in FP16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DecoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn

from sdcli.blocks.passing import Remembered
from sdcli.blocks.planes import (
    Convolved,
    Doubled,
    Halved,
    Normed,
    Parted,
    Plane,
    Stored,
    Sum,
    overwrite,
    part,
    store,
)
from sdcli.domain import Component
from sdcli.families.tiny.schema import TinyAutoencoder
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build

POOL_TIMES = POOL_GROUPS = 4
"""A pool has so many times a block's channels, normed in so many groups."""

CLAMPED = 3
"""Latents beyond plus and minus this say nothing more."""


class Above0:
    """A plane without what is negative in it. Its source's rows must be its own to give away."""

    def __init__(self, source: Plane) -> None:
        self._source = source
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self.row_bytes = source.row_bytes

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """In place."""
        return self._source.rows(begin, end).clamp_min_(0)


def build_tiny(component: Component) -> nn.Module:
    """Its decoder on the meta device."""
    settings: TinyAutoencoder = component.settings

    def make() -> nn.Module:
        decoder = DecoderTiny(
            settings.latent_channels,
            settings.out_channels,
            tuple(settings.num_decoder_blocks),
            tuple(settings.decoder_block_out_channels),
            settings.upsampling_scaling_factor,
            settings.act_fn,
            settings.upsample_fn,
        )
        if settings.use_midblock_gn:
            for block in decoder.layers[2 : 2 + settings.num_decoder_blocks[0]]:
                block.pool = _pool(settings.decoder_block_out_channels[0])
        return nn.ModuleDict({"decoder": decoder})

    return build(component, make)


def _pool(channels: int) -> nn.Sequential:
    """What the blocks of the smallest map add to it first, which diffusers does not have (taesd.py, Block)."""
    wide = POOL_TIMES * channels
    first, last = nn.Conv2d(channels, wide, 1, bias=False), nn.Conv2d(wide, channels, 1, bias=False)
    return nn.Sequential(first, nn.GroupNorm(POOL_GROUPS, wide), nn.ReLU(), last)


@contextmanager
def borrow_tiny(component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from (1, channels, h, w) latents as the denoiser knows them to (1, 3, 8h, 8w) pixels in -1…1."""
    module: Any = build_tiny(component)
    settings: TinyAutoencoder = component.settings
    scale, shift = settings.scaling_factor, settings.shift_factor
    with borrow.weights(module, component, fetched=nn.Conv2d):
        yield lambda latents: decode(module["decoder"].layers, latents / scale + shift, borrow)


def decode(layers: nn.Sequential, latents: torch.Tensor, borrow: Borrow) -> torch.Tensor:
    """As DecoderTiny.forward: (1, channels, h, w) to (1, 3, 8h, 8w) in -1…1 on the CPU in FP32."""
    device, dtype = borrow.device, borrow.dtype
    lasting = Halved if dtype is torch.float32 else Stored
    clamped = torch.tanh(latents.to(device.torch_device, dtype) / CLAMPED) * CLAMPED
    plane: Plane = Stored(clamped.contiguous(memory_format=device.memory_format))
    below: Parted | None = None
    last = max(number for number, layer in enumerate(layers) if isinstance(layer, nn.Upsample))
    for number, layer in enumerate(layers):
        match layer:
            case nn.Conv2d():
                plane = Convolved(plane, layer, device, dtype)
            case nn.Upsample():
                plane = Doubled(plane)
            case AutoencoderTinyBlock():
                plane = _block(plane, layer, borrow)
                continue
            case _:
                plane = Above0(plane)
        if number < last and isinstance(layers[number + 1], AutoencoderTinyBlock):
            plane = below = part(plane, device, dtype, lasting, below)
    return store(plane, device, dtype).values.to("cpu", torch.float32).contiguous().mul_(2).sub_(1)


def _block(plane: Plane, block: Any, borrow: Borrow) -> Plane:
    """relu(x + conv(relu(conv(relu(conv(x)))))), in the place of x if that is stored.

    Where the block has a pool, conv(relu(norm(conv(x)))) is added to x first.
    """
    device, dtype = borrow.device, borrow.dtype
    if hasattr(block, "pool"):
        if not isinstance(plane, Parted):
            raise TypeError("a block with a pool looks at all of a map, which has to be stored")
        wide, norm, activation, narrow = block.pool
        normed = Normed(Convolved(plane, wide, device, dtype), norm, activation, device)
        plane = overwrite(plane, Sum(Convolved(normed, narrow, device, dtype), plane), device)
    source = plane if isinstance(plane, Parted) else Remembered(plane)
    first, _, second, _, third = block.conv
    hidden: Plane = source
    for layer in (first, second):
        hidden = Above0(Convolved(hidden, layer, device, dtype))
    whole = Above0(Sum(Convolved(hidden, third, device, dtype), source))
    return overwrite(plane, whole, device) if isinstance(plane, Parted) else whole
