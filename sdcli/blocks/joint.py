"""Joint attention: tokens of several streams, each with weights of its own, attend to each other (Esser et al. 2024,
https://arxiv.org/abs/2403.03206), with normed queries and keys (Dehghani et al. 2023) that are turned by their places.

A few heads at a time: keys and values exist for those only, and what comes of them is put into the place of their
queries. States are normed a chunk of tokens at a time, as often as they are asked for, and never lie anywhere whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.rotary import rotate
from sdcli.units import MIB
from sdcli.weights.sliced import chunks, product

GROUP_BYTES = 12 * MIB
"""Of the keys of heads that go together."""

Rows = tuple[nn.Module, int]
"""Of a layer that may be fused: all its outputs from this one on, as many as are wanted."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Tokens of a sequence that share weights."""

    tokens: slice
    query: Rows
    key: Rows
    value: Rows
    norm_query: nn.Module
    norm_key: nn.Module
    normed: Callable[[slice], torch.Tensor]
    """The states of some of its tokens, as the products take them."""

    def chunks(self) -> Iterator[slice]:
        """Its tokens, some at a time."""
        return chunks(self.tokens.stop - self.tokens.start, self.query[0], self.tokens.start)


@dataclass(frozen=True, slots=True)
class JointAttention:
    """Of so many heads of a `size`. `between` is called after each group of heads."""

    attention: BoundedAttention
    heads: int
    size: int
    between: Callable[[], None]

    def __call__(self, streams: Sequence[Stream], turns: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What tokens take from each other, before the way out: (tokens, heads x size), in the type of `like`."""
        length = len(turns)
        mixed = like.new_empty(length, self.heads * self.size)
        for begin, end in self._groups(length, like.element_size()):
            self._mix(mixed, streams, turns, begin, end)
            self.between()
        return mixed

    def _groups(self, length: int, item_bytes: int) -> Iterator[tuple[int, int]]:
        """Heads that go together, about equal shares of all."""
        most = max(1, GROUP_BYTES // (length * self.size * item_bytes))
        count = -(-self.heads // -(-self.heads // most))
        return ((begin, min(begin + count, self.heads)) for begin in range(0, self.heads, count))

    def _mix(self, mixed: torch.Tensor, streams: Sequence[Stream], turns: torch.Tensor, begin: int, end: int) -> None:
        rows = slice(begin * self.size, end * self.size)
        query = self._as_heads(mixed[:, rows])
        key, value = (mixed.new_empty(len(mixed), end - begin, self.size) for _ in range(2))
        for stream in streams:
            for some in stream.chunks():
                normed = stream.normed(some)
                query[some] = rotate(stream.norm_query(self._product(normed, stream.query, rows)), turns[some])
                key[some] = rotate(stream.norm_key(self._product(normed, stream.key, rows)), turns[some])
                value[some] = self._product(normed, stream.value, rows)
        del normed
        asking, asked, given = (heads.transpose(0, 1)[None] for heads in (query, key, value))
        taken = self.attention.attend(asking, asked, given, self.size**-0.5)
        if taken is not asking:
            asking.copy_(taken)

    def _product(self, normed: torch.Tensor, rows: Rows, some: slice) -> torch.Tensor:
        layer, first = rows
        return self._as_heads(product(normed, layer, slice(first + some.start, first + some.stop)))

    def _as_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.unflatten(-1, (-1, self.size))
