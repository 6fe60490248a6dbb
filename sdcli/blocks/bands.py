"""An autoencoder's two halves computed band by band: the convolutional ones of latent diffusion, whoever's they are.

Of all maps only the sums along the residual stream are whole: a block's output takes the place of its input. In
FP32 they lie in FP16 between two blocks, which moves no pixel by more than 1/255. Where it may keep them, two
more maps are whole, where a block would otherwise compute its first half twice: faster by a third, larger by two to
three maps, and the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, TypeVar

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.frugal import make_frugal
from sdcli.blocks.passing import Remembered, Rounded
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
from sdcli.units import MIB
from sdcli.weights.borrow import Borrow

SCRATCH_BYTES = 8 * MIB
"""Whatever the plan: it runs once a picture, and in half precision another number of rows may round otherwise."""

DECODER_PARTS = ("decoder.", "post_quant_conv.")
ENCODER_PARTS = ("encoder.", "quant_conv.")

Autoencoder = TypeVar("Autoencoder", bound=nn.Module)


@contextmanager
def borrow_half(
    module: Autoencoder, component: Component, parts: tuple[str, ...], borrow: Borrow
) -> Iterator[Autoencoder]:
    """Lend the weights of the decoder or of the encoder to an autoencoder on the meta device.

    They stream: each is used once a picture, so keeping them would cost memory and save nothing.
    """
    attention = BoundedAttention(SCRATCH_BYTES, on_cpu=borrow.device.name == "cpu")
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.set_processor(attention)
    make_frugal(module)
    with borrow.weights(module, component, parts, fetched=nn.Conv2d):
        try:
            yield module
        finally:
            attention.free()


class Bands:
    """An autoencoder's arithmetic on planes: of a module that has an encoder, a decoder and perhaps a convolution after
    the one and before the other."""

    def __init__(self, borrow: Borrow, keep_maps: bool, never_keep: bool) -> None:
        """Two more maps are whole if it is to `keep_maps`, and of the largest none if it is to `never_keep` them."""
        self._device, self._dtype = borrow.device, borrow.dtype
        self._keep_maps, self._never_keep = keep_maps, never_keep
        self._lasting = Halved if borrow.dtype is torch.float32 else Stored
        """How maps lie that every plan stores."""

    def decode(self, whole: Any, latents: torch.Tensor) -> torch.Tensor:
        """(1, channels, h, w), unscaled, to (1, 3, 8h, 8w) in -1…1 on the CPU in FP32."""
        decoder = whole.decoder
        plane: Plane = self._placed(latents)
        if whole.post_quant_conv is not None:
            plane = self._convolved(plane, whole.post_quant_conv)
        plane = self._stored(self._convolved(plane, decoder.conv_in))
        plane = self._level(plane, decoder.mid_block)
        under: Parted | None = None
        *smaller, largest = decoder.up_blocks
        for block in smaller if self._never_keep else decoder.up_blocks:
            plane = stored = self._level(plane, block, under)
            under = None if self._keep_maps else stored
            del stored  # what is doubled goes under no other name, so that it can go
            for upsampler in block.upsamplers or ():
                plane = self._convolved(Doubled(plane), upsampler.conv)
                plane = self._exactly(plane) if self._keep_maps else Remembered(plane)
        plane = self._unkept(plane, largest) if self._never_keep else plane
        plane = self._convolved(self._normed(plane, decoder.conv_norm_out, decoder.conv_act), decoder.conv_out)
        return self._on_cpu(self._exactly(plane))

    def encode(self, whole: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, 3, 8h, 8w) in -1…1 to mean and deviation, (1, channels, h, w) each, on the CPU in FP32."""
        encoder = whole.encoder
        plane: Plane = self._convolved(self._placed(pixels), encoder.conv_in)
        plane = self._lasting_values(plane) if self._never_keep else self._stored(plane)
        for block in encoder.down_blocks:
            below: Parted | None = None
            if self._never_keep and block is encoder.down_blocks[0]:
                plane = self._unkept(plane, block)
            else:
                plane = below = self._level(plane, block)
            for downsampler in block.downsamplers or ():
                after = 1 if downsampler.padding == 0 else 0
                plane = self._stored(self._convolved(plane, downsampler.conv, after), below)
        plane = self._level(plane, encoder.mid_block)
        plane = self._convolved(self._normed(plane, encoder.conv_norm_out, encoder.conv_act), encoder.conv_out)
        if whole.quant_conv is not None:
            plane = self._convolved(plane, whole.quant_conv)
        posterior = DiagonalGaussianDistribution(self._on_cpu(self._exactly(plane)))
        return posterior.mean, posterior.std

    def _level(self, plane: Plane, block: Any, under: Parted | None = None) -> Parted:
        """Residual blocks and attention by turns: in the middle a block, attention, and a block.

        What lies `under` it is the map that the plane is computed from, if it is another one.
        """
        for resnet, attention in zip_longest(block.resnets, getattr(block, "attentions", ())):
            stored = self._residual(plane, resnet, None if plane is under else under)
            plane = stored = stored if attention is None else self._attended(stored, attention)
            under = None
        return stored

    def _residual(self, plane: Plane, block: ResnetBlock2D, spent: Parted | None) -> Parted:
        """x + conv(silu(norm(conv(silu(norm(x)))))) (He et al. 2016), in the place of x if it has the same shape."""
        hidden = self._hidden(plane, block)
        if block.conv_shortcut is None and isinstance(plane, Parted):
            return overwrite(plane, Sum(hidden, plane), self._device)
        shortcut = plane if block.conv_shortcut is None else self._convolved(plane, block.conv_shortcut)
        return self._stored(Sum(hidden, shortcut), spent)

    def _unkept(self, plane: Plane, block: Any) -> Plane:
        """The same of a level without attention, as planes of which none is stored."""
        for resnet in block.resnets:
            hidden = self._hidden(plane, resnet)
            shortcut = plane if resnet.conv_shortcut is None else self._convolved(plane, resnet.conv_shortcut)
            plane = self._lasting_values(Sum(hidden, shortcut))
        return plane

    def _hidden(self, plane: Plane, block: ResnetBlock2D) -> Plane:
        hidden: Plane = self._convolved(self._normed(plane, block.norm1, block.nonlinearity), block.conv1)
        if self._keep_maps:
            hidden = self._exactly(hidden)
        return self._convolved(self._normed(hidden, block.norm2, block.nonlinearity), block.conv2)

    def _attended(self, stored: Parted, attention: Attention) -> Parted:
        """Attention is at the smallest side, where a whole map is little."""
        whole = attention(stored.rows(0, stored.height)).contiguous(memory_format=self._device.memory_format)
        return self._stored(Stored(whole))

    def _placed(self, values: torch.Tensor) -> Stored:
        placed = values.to(self._device.torch_device, self._dtype)
        return Stored(placed.contiguous(memory_format=self._device.memory_format))

    def _stored(self, plane: Plane, spent: Parted | None = None) -> Parted:
        """For good; what is `spent` on it goes meanwhile."""
        return part(plane, self._device, self._dtype, self._lasting, spent)

    def _lasting_values(self, plane: Plane) -> Remembered:
        """What `_stored` would have, computed when it is asked for."""
        return Remembered(Rounded(plane, self._lasting, self._dtype))

    def _exactly(self, plane: Plane) -> Stored:
        """For a plan that has the memory, or for the end: not rounded."""
        return store(plane, self._device, self._dtype)

    def _on_cpu(self, stored: Stored) -> torch.Tensor:
        return stored.values.to("cpu", torch.float32).contiguous()

    def _normed(self, plane: Plane, norm: nn.GroupNorm, activation: nn.Module) -> Normed:
        return Normed(plane, norm, activation, self._device)

    def _convolved(self, plane: Plane, layer: nn.Conv2d, after: int = 0) -> Convolved:
        return Convolved(plane, layer, self._device, self._dtype, after)
