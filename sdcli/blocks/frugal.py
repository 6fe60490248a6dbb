"""The same arithmetic in fewer bytes, and the same for a batch as for each of its samples.

Replaces the forward of five kinds of modules. What goes are copies: an activation that is used once is changed in
place, residuals are added by the layer before (weights/packed.py), and a feed-forward's hidden states exist for a
few rows at a time. On a CPU norms and transformers run sample by sample: its kernels add up in another order for
another batch, so that guidance gives the same bits batched or one pass after another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.weights.packed import plus, shifted

WHOLE_BATCH = 2
"""Samples at a time: both of guidance."""

FEED_FORWARD_ROWS, FEED_FORWARD_WORK = 256, 1024 * 320**2
"""Tokens at a time: so many at least, else such that tokens times channels squared are so many.

That is 1024 tokens of 320 channels, whose hidden states take 2.5 MiB in half precision where all of a 512x512 step's
take 42; of 640 channels oneDNN takes twice the time a token for 512 or 1024 at a time that it takes for 256.
"""


def make_frugal(module: nn.Module, by_sample: bool = True) -> None:
    """Give every plain block, transformer, group norm and gate inside `module` its frugal forward."""
    for layer in module.modules():
        forward = _forward_of(layer)
        if isinstance(layer, Transformer2DModel) and forward is not None:
            for inner in layer.modules():
                if isinstance(inner, FeedForward):
                    inner.forward = partial(_feed_forward, inner)
        if forward is not None:
            layer.forward = partial(forward, layer, 1 if by_sample else WHOLE_BATCH)


def _forward_of(layer: nn.Module) -> Any:
    match layer:
        case ResnetBlock2D() if is_plain_residual(layer):
            return _residual_block
        case Transformer2DModel() if _is_plain_transformer(layer):
            return _transformer
        case nn.GroupNorm():
            return _group_norm
        case GEGLU():
            return _gate
        case _:
            return None


def is_plain_residual(block: ResnetBlock2D) -> bool:
    """Whether the block has only what Stable Diffusion's blocks have, and so gets a forward that takes lists."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and isinstance(block.nonlinearity, nn.SiLU)
        and not block.skip_time_act
        and block.output_scale_factor == 1.0
    )


def _is_plain_transformer(module: Transformer2DModel) -> bool:
    """The same for a transformer: self-attention, attention to the prompt, a gated feed-forward, three layer norms."""
    return module.is_input_continuous and all(
        isinstance(block, BasicTransformerBlock)
        and block.norm_type == "layer_norm"
        and block.pos_embed is None
        and not block.only_cross_attention
        and block.attn2 is not None
        and isinstance(block.ff.net[0], GEGLU)
        and len(block.ff.net) == 3
        and all(
            isinstance(attn.processor, BoundedAttention)
            and attn.group_norm is None
            and not attn.residual_connection
            and attn.rescale_output_factor == 1.0
            for attn in (block.attn1, block.attn2)
        )
        for block in module.transformer_blocks
    )


def _shares(batch: int, samples: int) -> Iterator[slice]:
    """The batch, so many samples at a time."""
    return (slice(begin, begin + samples) for begin in range(0, batch, samples))


def _group_norm(norm: nn.GroupNorm, samples: int, states: torch.Tensor) -> torch.Tensor:
    """Group norm (Wu and He 2018, https://arxiv.org/abs/1803.08494): (batch, channels, …)."""
    if len(states) == 1:
        return _norm(norm, states)
    normed = torch.empty_like(states)
    for some in _shares(len(states), samples):
        normed[some] = _norm(norm, states[some])
    return normed


def _norm(norm: nn.GroupNorm, states: torch.Tensor) -> torch.Tensor:
    return F.group_norm(states, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _norm_silu(norm: nn.GroupNorm, samples: int, states: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """silu(norm(states)), put into a tensor which may be `states`, with so many samples' worth of scratch."""
    for some in _shares(len(states), samples):
        torch.ops.aten.silu.out(_norm(norm, states[some]), out=into[some])
    return into


def _residual_block(
    block: ResnetBlock2D,
    samples: int,
    given: torch.Tensor | list[torch.Tensor],
    time: torch.Tensor | None = None,
) -> torch.Tensor:
    """x + conv(silu(norm(conv(silu(norm(x))) + time))) (He et al. 2016): (batch, channels, h, w).

    All samples have one time, or each its own. A map that comes in a list is given away: it is written over, and goes
    when it is last used.
    """
    spent = isinstance(given, list)
    states = given.pop() if isinstance(given, list) else given
    shortcut = states if block.conv_shortcut is None else block.conv_shortcut(states)
    into = states if spent and block.conv_shortcut is not None else torch.empty_like(states)
    states = _norm_silu(block.norm1, samples, states, into)
    del into
    if block.time_emb_proj is not None and time is not None:
        states = shifted(block.conv1, states, [block.time_emb_proj(F.silu(one))[0] for one in time.split(1)])
    else:
        states = block.conv1(states)
    return plus(block.conv2, _norm_silu(block.norm2, samples, states, states), shortcut)


def _transformer(
    module: Transformer2DModel, samples: int, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
) -> tuple[torch.Tensor]:
    """diffusers' Transformer2DModel.forward: (batch, channels, h, w) and (batch, tokens, channels) of the prompt.

    The output is in the place of the input. Where weights are larger than maps the samples go side by side, layer by
    layer, so that each weight is fetched once for all of them; elsewhere one after another, in the memory of one.
    """
    _batch, channels, height, width = hidden_states.shape
    shares = _shares(len(hidden_states), samples)
    ways = [_through_transformer(module, hidden_states[some], encoder_hidden_states[some]) for some in shares]
    together = height * width < channels
    deque(zip_longest(*ways) if together else chain(*ways), maxlen=0)
    return (hidden_states,)


def _through_transformer(module: Transformer2DModel, given: torch.Tensor, context: torch.Tensor) -> Iterator[None]:
    """Put the transformer's output in the place of `given`; stops after each layer or two."""
    states = module.norm(given)
    linear = module.use_linear_projection
    states = module.proj_in(_to_tokens(states)) if linear else _to_tokens(module.proj_in(states))
    yield
    for block in module.transformer_blocks:  # tokens attend to each other, then to the prompt, then pass a feed-forward
        for norm, attn, to in ((block.norm1, block.attn1, None), (block.norm2, block.attn2, context)):
            mixed = attn.processor.mix(attn, norm(states), to)
            yield
            states = plus(attn.to_out[0], mixed, states)
            del mixed
            yield
        states = block.ff(block.norm3(states), states)
        yield
    if linear:
        given[:] = _to_map(plus(module.proj_out, states, _to_tokens(given)), given)
    else:
        given[:] = plus(module.proj_out, _to_map(states, given), given)


def _to_tokens(states: torch.Tensor) -> torch.Tensor:
    """(batch, channels, h, w) → (batch, h w, channels): a view, if channels lie together."""
    return states.permute(0, 2, 3, 1).flatten(1, 2)


def _to_map(states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(batch, h w, channels) → (batch, channels, h, w), a view."""
    return states.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _feed_forward(layer: FeedForward, normed: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """states + (a * gelu(b)) V with (a, b) = normed W, in the place of `states`: (batch, tokens, channels) each."""
    widen, _, narrow = layer.net
    at_a_time = max(FEED_FORWARD_ROWS, FEED_FORWARD_WORK // states.shape[2] ** 2)
    for begin in range(0, states.shape[1], at_a_time):
        rows = slice(begin, begin + at_a_time)
        states[:, rows] = plus(narrow, widen(normed[:, rows]), states[:, rows])
    return states


def _gate(layer: GEGLU, _: int, states: torch.Tensor) -> torch.Tensor:
    """a * gelu(b) with (a, b) = x W (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    value, gate = layer.proj(states).chunk(2, dim=-1)
    return value.mul_(F.gelu(gate))
