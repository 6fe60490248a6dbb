"""x D for a difference D of each kind, added to an output in place: what adapters do beside a layer.

States are (tokens, in) or a map, (in, h, w), and the output alike, a map's in channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from sdcli.units import MIB
from sdcli.weights.adapters import Loaded, rows_at_a_time

TOKENS = 256
"""At a time: so that a kernel is compiled for so many, whatever the size of the map."""

ROOM_BYTES = 2 * MIB
"""For what some rows of a difference add."""

Convolve = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(n, in, h, w) and the numbers of a kernel, (out, in x kernel), to (n, out, h', w')."""


class Term(Protocol):
    """Adds to an output."""

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        """Of one sample."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Which outputs of an adapter are wanted, what each is multiplied by, (outputs, 1), and the arithmetic's type.

    `convolve` is of a convolution over more than one place.
    """

    loaded: Loaded
    first: int
    last: int
    gain: torch.Tensor | None
    dtype: torch.dtype
    convolve: Convolve | None

    @property
    def scale(self) -> float:
        """Times all of it."""
        return self.loaded.adapter.scale * self.loaded.adapter.weight


def term_of(part: Part, out: int, into: int) -> Term:
    """The way that takes the least, for a weight of (out, in x kernel)."""
    pair = _low_rank(part.loaded, out, into)
    if pair is not None:
        return _LowRank(part, *pair)
    if part.loaded.adapter.kind == "lokr":
        second = len(part.loaded.factors[1])
        if part.first % second == 0 == part.last % second:
            return _Kronecker(part, slice(part.first // second, part.last // second))
    return _ByRows(part, into)


def _low_rank(loaded: Loaded, out: int, into: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(rank, in x kernel) and (out, rank) whose product is the difference, unless that takes more than the difference.

    (B1 A1) ∘ (B2 A2) is the product of the products of all pairs: of columns of B1 and B2, and of rows of A1 and A2.
    """
    some = loaded.tensors
    if loaded.adapter.kind == "lora":
        return loaded.down, some["up"].flatten(1)
    if loaded.adapter.kind != "loha" or "t1" in some or "t2" in some:
        return None
    b1, a1, b2, a2 = (some[f"w{role}"].flatten(1) for role in ("1_a", "1_b", "2_a", "2_b"))
    if 2 * len(a1) * len(a2) * (out + into) > out * into:
        return None
    return (a1[:, None] * a2[None]).flatten(0, 1), (b1[:, :, None] * b2[:, None]).flatten(1)


class _LowRank:
    """(x A) B."""

    def __init__(self, part: Part, down: torch.Tensor, up: torch.Tensor) -> None:
        up = up[part.first : part.last] * part.scale
        self._down = down.to(part.dtype)
        self._up = (up if part.gain is None else up * part.gain).to(part.dtype).T
        self._convolve = part.convolve

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        output = _tokens(into)
        tokens = _tokens(self._convolve(states[None], self._down)[0] if self._convolve else states)
        for begin in range(0, len(output), TOKENS):
            some = slice(begin, begin + TOKENS)
            output[some].addmm_(tokens[some] if self._convolve else tokens[some] @ self._down.T, self._up)


class _Kronecker:
    """x (w1 ⊗ w2): inputs as (b, d), times w2 over d, times w1 over b."""

    def __init__(self, part: Part, rows: slice) -> None:
        one, two = part.loaded.factors
        self._one, self._two = (one[rows] * part.scale).to(part.dtype), two.flatten(1).to(part.dtype)
        self._gain = None if part.gain is None else part.gain[:, 0].to(part.dtype)
        self._convolve = part.convolve

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        first, second = self._one.shape[1], len(self._two)
        if self._convolve:
            given = states.unflatten(0, (first, -1))
            between = self._convolve(given, self._two)
            added = (self._one @ between.flatten(1)).view(-1, *between.shape[2:])
            into += added if self._gain is None else added * self._gain[:, None, None]
            return
        tokens, output = _tokens(states), _tokens(into)
        for begin in range(0, len(output), TOKENS):
            some = slice(begin, begin + TOKENS)
            between = (tokens[some].reshape(-1, self._two.shape[1]) @ self._two.T).view(-1, first, second)
            added = torch.matmul(self._one, between).flatten(1)
            output[some] += added if self._gain is None else added * self._gain


class _ByRows:
    """A few rows of the difference at a time, whatever its kind."""

    def __init__(self, part: Part, into: int) -> None:
        self._part, self._into = part, into

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        part, output = self._part, _tokens(into)
        rows = min(rows_at_a_time((1, self._into)), max(1, ROOM_BYTES // (len(output) * part.dtype.itemsize)))
        for first in range(part.first, part.last, rows):
            last = min(first + rows, part.last)
            delta = part.loaded.difference(first, last).mul_(part.loaded.adapter.weight)
            at = slice(first - part.first, last - part.first)
            delta = (delta if part.gain is None else delta.mul_(part.gain[at])).to(part.dtype)
            if part.convolve:
                into[at] += part.convolve(states[None], delta)[0]
            else:
                output[:, at] += _tokens(states) @ delta.T


def _tokens(states: torch.Tensor) -> torch.Tensor:
    """(channels, h, w) as (h w, channels), and whatever has channels last as (…, channels): a view, if they lie so."""
    if states.dim() == 3:
        return states.permute(1, 2, 0).flatten(0, 1)
    return states
