"""Weights by the slice: large matrices that are used where they lie, or of which a few rows at a time are cast.

A layer of the largest models has a weight of a third of a GiB in FP32. Where the arithmetic's type is the file's, a
product reads it in the mapped file, as fast as from memory, and nothing is copied. In any other type its rows are cast
some at a time, each for one product, so that the whole weight is never there.

Every product has its rows cut the same way whatever the plan: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from sdcli.domain import Origin
from sdcli.models.disks import lies_in_memory
from sdcli.units import MIB
from sdcli.weights.source import Stored

PIECE_BYTES = 12 * MIB
"""Of a weight, cast at a time: 1024 rows of 3072 numbers in FP32."""

TOKENS_LYING, TOKENS_CAST = 512, 1536
"""Tokens that a chunk of a long sequence has at most: few where a weight costs nothing to use again, more where it is
cast anew for each chunk, which takes 3 % of the product with so many."""

ALL = slice(None)

STORED_AS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""As files name the types of arithmetic."""


class Slices(Protocol):
    """A layer's weight, given out in slices that are never written to."""

    lies: bool
    """Whether slices are views of the file, and cost nothing."""
    shape: torch.Size

    def __call__(self, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """These rows and columns in the arithmetic's type, on its device."""
        ...


class StoredSlices:
    """Of a stored weight."""

    def __init__(
        self, stored: Stored, device: torch.device, dtype: torch.dtype, reads: Callable[[int], None] = lambda _: None
    ) -> None:
        """`reads` is told how many bytes of the file each slice takes."""
        self._stored, self._device, self._dtype, self._reads = stored, device, dtype, reads
        self.shape = stored.tensor.shape
        self.lies = stored.is_plain and stored.tensor.dtype is dtype and stored.tensor.device == device

    def __call__(self, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """See `Slices`."""
        piece = self._stored.tensor[rows, columns]
        self._reads(piece.nbytes)
        return piece if self.lies else self._stored.slice_of(rows, columns, self._device, self._dtype)


class KeptSlices:
    """Of a weight that is in memory: views, as many as if each were cast, so that products have the same bits."""

    lies = False

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight, self.shape = weight, weight.shape

    def __call__(self, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """See `Slices`."""
        return self._weight[rows, columns]


class DrySlices:
    """Of a weight without numbers: a view where it would lie, else memory of the same size."""

    def __init__(self, weight: torch.Tensor, lies: bool, used: Callable[[], None]) -> None:
        self._weight, self.lies, self._used = weight, lies, used
        self.shape = weight.shape

    def __call__(self, rows: slice = ALL, columns: slice = ALL) -> torch.Tensor:
        """See `Slices`."""
        self._used()
        piece = self._weight[rows, columns]
        return piece if self.lies else torch.empty(piece.shape, dtype=piece.dtype, device=piece.device)


def would_lie(origin: Origin, dtype: torch.dtype, on_cpu: bool) -> bool:
    """Whether a weight would be used where it lies, by what its header says."""
    lies = origin.info.dtype == STORED_AS[dtype] and not origin.swapped
    return lies and on_cpu and not lies_in_memory(origin.path)


def slices_of(layer: nn.Module) -> Slices:
    """Those of a layer that was lent so; of any other, of the weight that it has."""
    slices: Slices | None = layer.__dict__.get("slices")
    if slices is not None:
        return slices
    weight = layer.get_parameter("weight").detach()
    return StoredSlices(Stored(weight), weight.device, weight.dtype)


def set_slices(layer: nn.Module, slices: Slices) -> None:
    """Have the layer's weight given out so."""
    layer.__dict__["slices"] = slices


def product(states: torch.Tensor, layer: nn.Module, rows: slice = ALL) -> torch.Tensor:
    """states W^T + b, or those of its outputs that `rows` are: (tokens, in) → (tokens, out)."""
    slices, bias = slices_of(layer), _bias(layer, rows)
    if slices.lies:
        return F.linear(states, slices(rows), bias)
    begin, end, _ = rows.indices(slices.shape[0])
    output = states.new_empty(len(states), end - begin)
    for some in _cut(begin, end, slices.shape[1], states.dtype):
        torch.mm(states, slices(some).T, out=output[:, some.start - begin : some.stop - begin])
    return output if bias is None else output.add_(bias)


def add_product(output: torch.Tensor, states: torch.Tensor, layer: nn.Module, columns: slice = ALL) -> torch.Tensor:
    """output + states W^T in the place of `output`, by those of the weight's columns that `states` are for.

    (tokens, out) and (tokens, columns). It adds no bias.
    """
    slices = slices_of(layer)
    begin, end, _ = columns.indices(slices.shape[1])
    for some in [slice(begin, end)] if slices.lies else _cut(begin, end, slices.shape[0], states.dtype):
        output.addmm_(states[:, some.start - begin : some.stop - begin], slices(ALL, some).T)
    return output


def columns_at_a_time(layer: nn.Module, dtype: torch.dtype) -> int:
    """Columns of a layer's weight that are cast at a time; all of them where it is used as it lies."""
    slices = slices_of(layer)
    return slices.shape[1] if slices.lies else _at_a_time(slices.shape[0], dtype)


def tokens_at_a_time(tokens: int, layer: nn.Module) -> int:
    """Tokens of a chunk, so that all of them are about equal."""
    most = TOKENS_LYING if slices_of(layer).lies else TOKENS_CAST
    return -(-tokens // -(-tokens // most)) if tokens else most


def chunks(tokens: int, layer: nn.Module, first: int = 0) -> Iterator[slice]:
    """So many tokens from the `first` on, a chunk at a time, as suits a layer's weight."""
    size = tokens_at_a_time(tokens, layer)
    for begin in range(first, first + tokens, size):
        yield slice(begin, min(begin + size, first + tokens))


def _cut(begin: int, end: int, across: int, dtype: torch.dtype) -> Iterator[slice]:
    """Slices of PIECE_BYTES at most, of a weight that has `across` numbers for each."""
    size = _at_a_time(across, dtype)
    return (slice(first, min(first + size, end)) for first in range(begin, end, size))


def _at_a_time(across: int, dtype: torch.dtype) -> int:
    return max(1, PIECE_BYTES // (across * dtype.itemsize))


def _bias(layer: Any, rows: slice) -> torch.Tensor | None:
    bias: torch.Tensor | None = layer.bias
    return None if bias is None else bias[rows]
