"""The same arithmetic in fewer bytes, and the same for a batch as for each of its samples.

Replaces the forward of four kinds of modules. What goes are copies: an activation that is used
once is changed in place, and a feed-forward's hidden states exist for a few rows at a time. Products, norms and
feed-forwards run sample by sample, because CPU kernels add up in another order for another batch: so
guidance gives the same bits batched or one pass after another.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

FEED_FORWARD_ROWS = 1024
"""Tokens at a time: their hidden states take 8 MiB in half precision where all of a 512x512 step's take 63."""


def make_frugal(module: nn.Module) -> None:
    """Give every residual block, linear layer, group norm and gated feed-forward inside `module` its frugal forward."""
    for layer in module.modules():
        if isinstance(layer, FeedForward) and isinstance(layer.net[0], GEGLU):
            layer.forward = _feed_forward.__get__(layer)
        elif isinstance(layer, ResnetBlock2D) and _is_plain(layer):
            layer.forward = _residual_block.__get__(layer)
        elif isinstance(layer, nn.GroupNorm):
            layer.forward = _group_norm.__get__(layer)  # type: ignore[method-assign]  # on this instance only
        elif isinstance(layer, nn.Linear):
            layer.forward = _linear.__get__(layer)  # type: ignore[method-assign]  # the same


def _is_plain(block: ResnetBlock2D) -> bool:
    """Whether the block has only what Stable Diffusion's blocks have."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and isinstance(block.nonlinearity, nn.SiLU)
        and not block.skip_time_act
    )


def _linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    """x W + b, a sample at a time: (batch, …, in) → (batch, …, out)."""
    if len(states) == 1:
        return F.linear(states, layer.weight, layer.bias)
    output = torch.empty(*states.shape[:-1], layer.out_features, dtype=states.dtype, device=states.device)
    for sample in range(len(states)):
        one = slice(sample, sample + 1)
        output[one] = F.linear(states[one], layer.weight, layer.bias)
    return output


def _group_norm(norm: nn.GroupNorm, states: torch.Tensor) -> torch.Tensor:
    """Group norm (Wu and He 2018, https://arxiv.org/abs/1803.08494), a sample at a time: (batch, channels, …)."""
    if len(states) == 1:
        return _norm_one(norm, states)
    normed = torch.empty_like(states)
    for sample in range(len(states)):
        normed[sample : sample + 1] = _norm_one(norm, states[sample : sample + 1])
    return normed


def _norm_one(norm: nn.GroupNorm, states: torch.Tensor) -> torch.Tensor:
    return F.group_norm(states, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _norm_silu(norm: nn.GroupNorm, states: torch.Tensor) -> torch.Tensor:
    """silu(norm(states)) with one new tensor and one sample's worth of scratch."""
    if len(states) == 1:
        return F.silu(_norm_one(norm, states), inplace=True)
    activated = torch.empty_like(states)
    for sample in range(len(states)):
        normed = _norm_one(norm, states[sample : sample + 1])
        torch.ops.aten.silu.out(normed, out=activated[sample : sample + 1])
    return activated


def _residual_block(block: ResnetBlock2D, input_tensor: torch.Tensor, temb: torch.Tensor | None = None) -> torch.Tensor:
    """diffusers' ResnetBlock2D.forward, in place: (batch, channels, h, w) → (batch, out channels, h, w)."""
    hidden = block.conv1(_norm_silu(block.norm1, input_tensor))
    if block.time_emb_proj is not None and temb is not None:
        hidden += block.time_emb_proj(F.silu(temb))[:, :, None, None]
    hidden = block.conv2(_norm_silu(block.norm2, hidden))
    hidden += input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
    if block.output_scale_factor != 1.0:
        hidden /= block.output_scale_factor
    return hidden


def _feed_forward(layer: FeedForward, hidden_states: torch.Tensor) -> torch.Tensor:
    """(a * gelu(b)) V with (a, b) = x W (Shazeer 2020, https://arxiv.org/abs/2002.05202): (batch, tokens, channels)."""
    widen, narrow = layer.net[0].proj, layer.net[2]
    samples, tokens, _ = hidden_states.shape
    if tokens <= FEED_FORWARD_ROWS:
        some, gate = widen(hidden_states).chunk(2, dim=-1)
        output: torch.Tensor = narrow(some.mul_(F.gelu(gate)))
        return output
    output = torch.empty_like(hidden_states)
    for sample in range(samples):
        for begin in range(0, tokens, FEED_FORWARD_ROWS):
            rows = slice(begin, begin + FEED_FORWARD_ROWS)
            some, gate = widen(hidden_states[sample : sample + 1, rows]).chunk(2, dim=-1)
            output[sample, rows] = narrow(some.mul_(F.gelu(gate)))[0]
    return output
