"""Attention with a bound: scores exist only for as many queries at a time as fit one scratch buffer.

softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762) row by row of Q is exact,
so the picture does not depend on the size of the scratch. One buffer serves all layers of a stage; the
softmax happens in place in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from sdcli.blocks.softmax import MULTIPLE, goes_by_library, softmax
from sdcli.units import KIB

FEW_KEYS = 256
"""Below this many keys (a prompt has 77 a chunk) the library's fused kernel needs no score matrix to speak of."""

FUSED_HEAD_LIMIT = 256
"""Largest head of a fused kernel on every device; the autoencoder's one head of 512 goes in chunks."""

KEYS_MULTIPLE = 16
"""Keys that the CPU's fused kernel takes at a time, half of that at least."""


FEW_ROWS = 256
"""Queries that go together where heads go a few at a time: with fewer the products take longer."""

HEADS_BYTES = 640 * KIB
"""Two heads of a 512x512 picture's first level, which take less time so than all at once."""


class BoundedAttention:
    """A diffusers attention processor whose scores never take more than `scratch_bytes`.

    A single query's scores are the least that can be computed: heads x keys numbers. With `fused` the library's
    own kernel is used for the heads that it is made for; it keeps no scores (Dao et al. 2022,
    https://arxiv.org/abs/2205.14135), and goes a few heads at a time `on_cpu`, as is best there.
    """

    def __init__(self, scratch_bytes: int, fused: bool = False, on_cpu: bool = True) -> None:
        self._scratch_bytes, self._fused, self._on_cpu = scratch_bytes, fused, on_cpu
        self._scratch = torch.empty(0)

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The layer's output, in the shape of `hidden_states`: (batch, tokens, channels) or (batch, channels, h, w)."""
        if attention_mask is not None or attn.spatial_norm is not None or attn.norm_q is not None:
            raise ValueError("attention with a mask or with normalised queries is not part of Stable Diffusion 1.x")
        residual, shape = hidden_states, hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        output = attn.to_out[0](self.mix(attn, hidden_states, encoder_hidden_states))

        if residual.ndim == 4:
            output = output.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            output = output + residual
        if attn.rescale_output_factor != 1.0:
            output = output / attn.rescale_output_factor
        return output

    def mix(self, attn: Attention, states: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """What tokens take from each other, or from the prompt's, before the way out: (batch, tokens, channels)."""
        context = states if context is None else context
        query, key, value = (
            _split_heads(project(given), attn.heads)
            for project, given in ((attn.to_q, states), (attn.to_k, context), (attn.to_v, context))
        )
        del states, context  # nobody else may know them any more
        upcast = attn.upcast_attention and query.dtype == torch.float16
        return self.attend(query, key, value, attn.scale, upcast).transpose(1, 2).flatten(2)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, upcast: bool = False
    ) -> torch.Tensor:
        """Over (batch, heads, tokens, head size), maybe in the place of the queries; `upcast` has scores in FP32."""
        # the fused kernels have scores in FP32, and BF16 holds what FP32 does
        if self._fused and key.shape[3] <= FUSED_HEAD_LIMIT:
            return _fused(query, key, value, scale, self._on_cpu)
        if self._on_cpu and not upcast and goes_by_library(query):
            return self._attend_by_library(query, key, value, scale)
        if key.shape[2] < FEW_KEYS and not upcast:
            return F.scaled_dot_product_attention(query, key, value, scale=scale)
        return self._attend(query, key, value, scale, torch.float32 if upcast else None)

    def _attend_by_library(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """As `_attend`, but a few heads at a time, and what comes of the scores lies apart from them.

        Keys and values lie as the library's product takes them, or it would copy them for every few queries.
        """
        queries, keys, size = query.shape[2], key.shape[2], key.shape[3]
        lacking = -keys % MULTIPLE
        key = _filled_up(key.transpose(2, 3).reshape(-1, size, keys), 2, lacking)
        value = _filled_up(value.reshape(-1, keys, size), 1, lacking)
        row_bytes = 2 * query.element_size() * key.shape[2]
        together = min(len(key), max(1, self._scratch_bytes // (row_bytes * min(FEW_ROWS, queries))))

        def weigh(scores: torch.Tensor) -> torch.Tensor:
            scores[:, :, keys:] = -torch.inf
            return softmax(scores)

        return self._in_turn(query, key, value, scale, weigh, together, row_bytes)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        scores_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Scaled dot-product attention over (batch, heads, tokens, head size), a few queries of all heads at a time.

        Scores are in the queries' type, or in another: those of Stable Diffusion 2.1 are too large for FP16.
        """
        keys, size = key.shape[2], key.shape[3]
        dtype = query.dtype if scores_dtype is None else scores_dtype
        key = key.reshape(-1, keys, size).transpose(1, 2).to(dtype)
        value = value.reshape(-1, keys, size)
        item = dtype.itemsize + (query.element_size() if dtype != query.dtype else 0)  # beside the scores, their copy

        def weigh(scores: torch.Tensor) -> torch.Tensor:
            return torch.softmax(scores, dim=-1, out=scores).to(value.dtype)

        return self._in_turn(query, key, value, scale, weigh, len(key), item * keys)

    def _in_turn(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        weigh: Callable[[torch.Tensor], torch.Tensor],
        together: int,
        row_bytes: int,
    ) -> torch.Tensor:
        """So many heads `together`, of each so many queries as the scratch allows: (batch, heads, queries, head size).

        Keys are (batch * heads, head size, keys), values (batch * heads, keys, head size). `weigh` makes weights of
        scores, maybe in their place; both take `row_bytes` for one query of one head.
        """
        shape, (queries, size), keys = query.shape, query.shape[2:], key.shape[2]
        query = query.reshape(-1, queries, size)
        rows = self.rows(row_bytes * together, queries)
        scratch = self._room(together * rows * keys, key.dtype, query.device)
        if query.is_meta:  # a dry run: one chunk is as all of them, and there may be tens of thousands
            beside_bytes = together * rows * (row_bytes - keys * key.element_size() + size * query.element_size())
            torch.empty(beside_bytes, dtype=torch.uint8, device=query.device)
            key, value = key.transpose(1, 2).reshape(*shape[:2], -1, size), value.view(*shape[:2], -1, size)
            return F.scaled_dot_product_attention(query.view(shape), key.to(query.dtype), value)
        output = torch.empty_like(query)
        for first, begin in product(range(0, len(query), together), range(0, queries, rows)):
            heads, some = slice(first, first + together), slice(begin, begin + rows)
            asking = query[heads, some].to(key.dtype)
            scores = scratch[: asking.shape[0] * asking.shape[1] * keys].view(*asking.shape[:2], keys)
            torch.baddbmm(scores, asking, key[heads], beta=0, alpha=scale, out=scores)
            output[heads, some] = torch.bmm(weigh(scores), value[heads])
        return output.view(shape)

    def free(self) -> None:
        """Drop the scratch: the layers that hold this processor may outlive their weights."""
        self._scratch = torch.empty(0)

    def rows(self, row_bytes: int, queries: int) -> int:
        """Queries at a time: equal shares of all of them, as few shares as the scratch allows."""
        shares = math.ceil(queries / max(1, self._scratch_bytes // row_bytes))
        return math.ceil(queries / shares)

    def _room(self, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if self._scratch.numel() < numel or self._scratch.dtype != dtype or self._scratch.device != device:
            self._scratch = torch.empty(0)  # the old one goes before the new one comes
            # zeros, since baddbmm on MPS lets NaN through from what beta=0 says to ignore (pytorch#187521, #194442)
            self._scratch = torch.zeros(numel, dtype=dtype, device=device)
        return self._scratch


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, on_cpu: bool = True
) -> torch.Tensor:
    """The library's kernel. The CPU's takes twice the time for 77 keys that it takes for 80, three of them masked.

    On a CPU a few heads at a time, each group's output in the place of its queries: the kernel lays out keys and
    values once more, and both copies are of those heads only.
    """
    lacking, mask = -key.shape[2] % KEYS_MULTIPLE, None
    if lacking and on_cpu:
        mask = torch.zeros(key.shape[2] + lacking, dtype=query.dtype, device=query.device)
        mask[key.shape[2] :] = -torch.inf
        key, value = F.pad(key, (0, 0, 0, lacking)), F.pad(value, (0, 0, 0, lacking))
        mask = mask.expand(1, 1, 1, -1)
    attend = partial(F.scaled_dot_product_attention, attn_mask=mask, scale=scale)
    heads = heads_at_a_time(query, key)
    if heads >= query.shape[1] or not on_cpu:
        return attend(query, key, value)
    for begin in range(0, query.shape[1], heads):
        some = slice(begin, begin + heads)
        query[:, some] = attend(query[:, some], key[:, some], value[:, some])
    return query


def heads_at_a_time(query: torch.Tensor, key: torch.Tensor) -> int:
    """So many that neither their queries nor their keys are more than HEADS_BYTES."""
    longer = max(query.shape[2], key.shape[2])
    return max(1, HEADS_BYTES // (query.shape[0] * longer * query.shape[3] * query.element_size()))


def _filled_up(states: torch.Tensor, dim: int, lacking: int) -> torch.Tensor:
    """Contiguous, with so many zeros more along a dimension."""
    if not lacking:
        return states.contiguous()
    shape = list(states.shape)
    shape[dim] += lacking
    filled = states.new_zeros(shape)
    filled.narrow(dim, 0, states.shape[dim]).copy_(states)
    return filled


def _split_heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    """(batch, tokens, channels) → (batch, heads, tokens, channels / heads)."""
    batch, tokens, channels = states.shape
    return states.view(batch, tokens, heads, channels // heads).transpose(1, 2)
