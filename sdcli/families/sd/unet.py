"""The UNet of Stable Diffusion (Ronneberger et al. 2015; Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

The modules are diffusers' own; the way through them is here, because a map must go when it is last used, and a caller
further up that still knows it would keep it. The maps of the way down wait for the way up, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import (
    CrossAttnDownBlock2D,
    CrossAttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UNetMidBlock2DCrossAttn,
    UpBlock2D,
)
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from sdcli.blocks.frugal import is_plain_residual

Between = Callable[[Literal["piece", "block"]], None]
"""Called after each residual block, transformer and change of size, and after each level."""


def predict(
    unet: UNet2DConditionModel,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    context: torch.Tensor,
    between: Between,
    condition: torch.Tensor | None = None,
    added: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """What UNet2DConditionModel.forward gives for (batch, channels, h, w) latents, all at one timestep.

    Attention must have been bounded and the modules made frugal. `condition`, (1, channels), goes with the time, and so
    does what is `added` to it (UNet2DConditionModel's added_cond_kwargs), each sample's own.
    """
    time = unet.time_embedding(unet.time_proj(timestep.reshape(1)).to(latents), condition)
    if added:
        each = zip(added["text_embeds"].split(1), added["time_ids"].split(1), strict=True)
        time = torch.cat([time + _prompt_and_size(unet, pooled, sizes) for pooled, sizes in each])
    states = unet.conv_in(latents)
    skips = [states]
    for block in unet.down_blocks:
        for resnet, attention in _pairs(block):
            states = _piece(resnet, attention, states, time, context, between)
            skips.append(states)
        for downsampler in block.downsamplers or ():
            states = downsampler(states)
            skips.append(states)
        between("block")

    if unet.mid_block is not None:
        first, *others = unet.mid_block.resnets
        states = first(states, time)
        for attention, resnet in zip(unet.mid_block.attentions, others, strict=True):
            states = resnet(attention(states, encoder_hidden_states=context)[0], time)
            between("piece")
        between("block")

    for block in unet.up_blocks:
        for resnet, attention in _pairs(block):
            given = [states, skips.pop()]
            del states
            states = _piece(resnet, attention, given, time, context, between)
        for upsampler in block.upsamplers or ():
            states = upsampler(states, _size_after(states, skips[-1]))
        between("block")
    output: torch.Tensor = unet.conv_out(F.silu(unet.conv_norm_out(states), inplace=True))
    return output


def embedded_guidance(guidance: float, size: int) -> torch.Tensor:
    """The guidance as a model distilled to take it wants it, (1, size): sines and cosines of 1000 (guidance - 1).

    As diffusers' StableDiffusionPipeline.get_guidance_scale_embedding.
    """
    half = size // 2
    step = torch.log(torch.tensor(10_000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half) * -step)
    angles = torch.tensor(guidance - 1) * 1000.0 * frequencies
    return F.pad(torch.cat([angles.sin(), angles.cos()]), (0, size % 2))[None]


def _prompt_and_size(unet: Any, pooled: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """The whole prompt and sizes of the picture as SDXL's denoiser takes them, (1, channels)."""
    waves = unet.add_time_proj(sizes.flatten()).reshape(1, -1).to(pooled)
    embedded: torch.Tensor = unet.add_embedding(torch.cat([pooled, waves], dim=-1))
    return embedded


def _pairs(block: Any) -> Iterator[tuple[Any, Any]]:
    """Residual blocks, each with the transformer after it or None."""
    return zip_longest(block.resnets, getattr(block, "attentions", ()))


def _piece(
    resnet: Any,
    attention: Any,
    given: torch.Tensor | list[torch.Tensor],
    time: torch.Tensor,
    context: torch.Tensor,
    between: Between,
) -> torch.Tensor:
    """A residual block and its transformer. Maps in a list are given away: they are put side by side, and go."""
    if isinstance(given, list):
        given[:] = [torch.cat(given, dim=1)]
    states: torch.Tensor = resnet(given, time)
    between("piece")
    if attention is not None:
        states = attention(states, encoder_hidden_states=context)[0]
        between("piece")
    return states


def is_plain(unet: UNet2DConditionModel) -> bool:
    """Whether the UNet is made of what Stable Diffusion's is, so that `predict` is its forward."""
    mid = unet.mid_block
    return (
        all(isinstance(block, (CrossAttnDownBlock2D, DownBlock2D)) for block in unet.down_blocks)
        and all(isinstance(block, (CrossAttnUpBlock2D, UpBlock2D)) for block in unet.up_blocks)
        and (mid is None or isinstance(mid, UNetMidBlock2DCrossAttn | UNetMidBlock2D))
        and (mid is None or len(mid.resnets) == len(mid.attentions) + 1)
        and isinstance(unet.conv_act, nn.SiLU)
        and not unet.config.center_input_sample
        and all(is_plain_residual(layer) for layer in unet.modules() if isinstance(layer, ResnetBlock2D))
    )


def _size_after(states: torch.Tensor, skip: torch.Tensor) -> tuple[int, int] | None:
    """The size to upsample to where it is not twice the size: an odd side was rounded up on the way down."""
    height, width = skip.shape[2:]
    return None if (height, width) == (2 * states.shape[2], 2 * states.shape[3]) else (height, width)
