"""x D for a difference D of each kind, added to an output in place: what adapters do beside a layer.

States are (tokens, in) or a map, (in, h, w), and the output alike, a map's in channels last. Products are in FP32
whatever the arithmetic's type: they are few, and of half precision the CPU's library compiles a kernel for each shape
and keeps 0.7 MiB for it (30 shapes of a LoRA for Stable Diffusion 1.5: 21 MiB, in FP32 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from sdcli.units import MIB
from sdcli.weights.adapters import Loaded, rows_at_a_time

TOKENS, FEWEST_TOKENS = 256, 16
"""At a time, at most and at least."""

ROOM_BYTES = 2 * MIB
"""For what is added at a time."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution goes over a map: its kernel, steps, padding and spread, each along height and width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def after(self, height: int, width: int) -> tuple[int, int]:
        """Sides of what it makes of a map."""
        sides = zip((height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True)
        down, across = ((s + 2 * pad - apart * (k - 1) - 1) // step + 1 for s, k, step, pad, apart in sides)
        return down, across


POINTWISE = Geometry((1, 1), (1, 1), (0, 0), (1, 1))
"""Of a convolution that is a product of matrices."""


class Term(Protocol):
    """Adds to an output."""

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        """Of one sample."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Which outputs of an adapter are wanted, and what each is multiplied by, (outputs, 1).

    `geometry` is of a convolution over more than one place.
    """

    loaded: Loaded
    first: int
    last: int
    gain: torch.Tensor | None
    geometry: Geometry | None

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
        self._up = (up if part.gain is None else up * part.gain).T
        self._geometry = part.geometry
        if part.geometry is not None:  # (rank, in x kernel) → (kernel x rank, in)
            down = down.unflatten(1, (-1, math.prod(part.geometry.kernel))).permute(2, 0, 1).flatten(0, 1)
        self._down = down.T

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        output = _tokens(into)
        if self._geometry is not None:
            between = _convolved_down(states, self._down, self._geometry).flatten(0, 1)
            for some in _shares(len(output), self._up.shape[1]):
                _add(output[some], between[some], self._up)
            return
        tokens = _tokens(states)
        for some in _shares(len(output), max(len(self._down), self._up.shape[1])):
            _add(output[some], tokens[some].float() @ self._down, self._up)


def _shares(tokens: int, widest: int) -> Iterator[slice]:
    """Some tokens at a time, of which the widest tensor has so many numbers each."""
    at_a_time = max(FEWEST_TOKENS, min(TOKENS, ROOM_BYTES // (widest * torch.float32.itemsize)))
    return (slice(begin, begin + at_a_time) for begin in range(0, tokens, at_a_time))


def _add(output: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> None:
    """output + one x other in FP32, rounded to the output's type in its place."""
    if output.dtype is torch.float32:
        output.addmm_(one, other)
    else:
        output.copy_(output.float().addmm_(one, other))


def _convolved_down(states: torch.Tensor, down: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """(in, h, w) by a kernel of few outputs, (in, kernel x rank), to (h', w', rank).

    A few rows of the map at a time are multiplied by all places of the kernel at once, and each product is added where
    it belongs: no library's kernel is compiled for it, and none lays out weights anew.
    """
    _, height, width = states.shape
    places = [(y, x) for y in range(geometry.kernel[0]) for x in range(geometry.kernel[1])]
    summed = down.new_zeros(*geometry.after(height, width), down.shape[1] // len(places))
    rows = max(1, TOKENS // width)
    for begin in range(0, height, rows):
        some = _tokens(states[:, begin : begin + rows]).float()
        products = (some @ down).view(-1, width, len(places), summed.shape[2])
        for index, (y, x) in enumerate(places):
            to_rows, from_rows = _pairs(0, y, begin, begin + len(products), len(summed), geometry)
            to_columns, from_columns = _pairs(1, x, 0, width, summed.shape[1], geometry)
            summed[to_rows, to_columns] += products[from_rows, from_columns, index]
    return summed


def _pairs(side: int, place: int, begin: int, end: int, after: int, geometry: Geometry) -> tuple[slice, slice]:
    """Along a side, which of `after` outputs see one of the inputs `begin` to `end` at this place of the kernel, and
    which of these they see: input = output x stride + shift."""
    stride, shift = geometry.stride[side], place * geometry.dilation[side] - geometry.padding[side]
    first = max(0, -(-(begin - shift) // stride))
    count = max(0, min(after, (end - 1 - shift) // stride + 1) - first)
    at = first * stride + shift - begin
    return slice(first, first + count), slice(at, at + count * stride if count else at, stride)


class _Kronecker:
    """x (w1 ⊗ w2): inputs as (b, d), times w2 over d, times w1 over b."""

    def __init__(self, part: Part, rows: slice) -> None:
        one, two = part.loaded.factors
        self._one, self._two, self._gain = one[rows] * part.scale, two.flatten(1), part.gain
        self._geometry = part.geometry

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        first, second = self._one.shape[1], len(self._two)
        if self._geometry is not None:
            between = _convolved(states.unflatten(0, (first, -1)), self._two, self._geometry).flatten(1)
            added = (self._one.to(states.dtype) @ between).view(into.shape)
            into += added if self._gain is None else added * self._gain[:, None]
            return
        tokens, output = _tokens(states), _tokens(into)
        for some in _shares(len(output), max(states.shape[-1], output.shape[1], first * second)):
            given = tokens[some].float().reshape(-1, self._two.shape[1])
            added = torch.matmul(self._one, (given @ self._two.T).view(-1, first, second)).flatten(1)
            output[some] += added if self._gain is None else added * self._gain[:, 0]


class _ByRows:
    """A few rows of the difference at a time, whatever its kind."""

    def __init__(self, part: Part, into: int) -> None:
        self._part, self._into = part, into

    def __call__(self, states: torch.Tensor, into: torch.Tensor) -> None:
        part, output = self._part, _tokens(into)
        rows = rows_at_a_time((1, self._into))
        if part.geometry is not None:
            rows = min(rows, max(1, ROOM_BYTES // (len(output) * output.element_size())))
        for first in range(part.first, part.last, rows):
            last = min(first + rows, part.last)
            delta = part.loaded.difference(first, last).mul_(part.loaded.adapter.weight)
            at = slice(first - part.first, last - part.first)
            delta = delta if part.gain is None else delta.mul_(part.gain[at])
            if part.geometry is not None:
                into[at] += _convolved(states[None], delta, part.geometry)[0]
                continue
            tokens = _tokens(states)
            for some in _shares(len(output), max(self._into, last - first)):
                output[some, at] += tokens[some].float() @ delta.T


def _convolved(states: torch.Tensor, kernel: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """(n, in, h, w) and the numbers of a kernel, (out, in x kernel), to (n, out, h', w')."""
    sides = kernel.view(len(kernel), -1, *geometry.kernel).to(states.dtype)
    return F.conv2d(states, sides, None, geometry.stride, geometry.padding, geometry.dilation)


def _tokens(states: torch.Tensor) -> torch.Tensor:
    """(channels, h, w) as (h w, channels), and whatever has channels last as (…, channels): a view, if they lie so."""
    if states.dim() == 3:
        return states.permute(1, 2, 0).flatten(0, 1)
    return states
