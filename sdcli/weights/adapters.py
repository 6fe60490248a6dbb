"""LoRA and its kin: what they do to a weight (domain.Adapter).

Where a weight is filled, the difference is added in FP32, some rows at a time (`Merged`). What it is, for how much `s`
of a difference D to a weight W: W + s D; and where it has magnitudes m, W + s (m ∘ (W + D) / |W + D| - W). Those of
several files add up, each a change of W itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from sdcli.domain import Adapter, Component, Origin
from sdcli.errors import NotFinite, echo
from sdcli.units import MIB
from sdcli.weights.source import Source, Stored

PIECE_BYTES = MIB
"""Of a weight in FP32 that is changed at a time."""

PIECES = 5
"""So many of them are alive at once."""

EPSILON = torch.finfo(torch.float32).eps
"""Beside a norm that is divided by."""

Read = Callable[[Origin, torch.device, torch.dtype], torch.Tensor]
"""A tensor of an adapter on a device in a type."""


@dataclass(frozen=True)
class Loaded:
    """An adapter's tensors in FP32, as matrices: sides (rows, columns), and the numbers of a kernel last of all."""

    adapter: Adapter
    tensors: dict[str, torch.Tensor]
    kernel: int

    def difference(self, begin: int, end: int) -> torch.Tensor:
        """Rows of the difference, (end - begin, in x kernel)."""
        some, kind = self.tensors, self.adapter.kind
        if kind == "lora":
            delta = some["up"].flatten(1)[begin:end] @ self.down
        elif kind == "loha":
            delta = self._product("1", begin, end).mul_(self._product("2", begin, end))
        else:
            delta = self._kronecker(begin, end)
        return delta.mul_(self.adapter.scale)

    @cached_property
    def down(self) -> torch.Tensor:
        """Of a LoRA, (rank, in x kernel): with the kernel between the two, its product with that."""
        down, mid = self.tensors["down"], self.tensors.get("mid")
        if mid is None:
            return down.flatten(1)
        return torch.einsum("udk,di->uik", mid.view(*mid.shape[:2], -1), down.flatten(1)).flatten(1)

    def _product(self, one: str, begin: int, end: int) -> torch.Tensor:
        """Of a LoHa, one of its two factors."""
        a, b, t = self.tensors[f"w{one}_a"], self.tensors[f"w{one}_b"], self.tensors.get(f"t{one}")
        if t is None:
            return a.flatten(1)[begin:end] @ b.flatten(1)
        return _with_kernel(t, a.flatten(1)[:, begin:end], b.flatten(1))

    @cached_property
    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a LoKr, w1 (a, b) and w2 (c, d, kernel)."""
        some = self.tensors
        one = some["w1"].flatten(1) if "w1" in some else some["w1_a"].flatten(1) @ some["w1_b"].flatten(1)
        if "w2" in some:
            two = some["w2"].flatten(1)
        elif "t2" in some:
            two = _with_kernel(some["t2"], some["w2_a"].flatten(1), some["w2_b"].flatten(1))
        else:
            two = some["w2_a"].flatten(1) @ some["w2_b"].flatten(1)
        return one, two.unflatten(1, (-1, self.kernel))

    def _kronecker(self, begin: int, end: int) -> torch.Tensor:
        one, two = self.factors
        rows = torch.arange(begin, end, device=one.device)
        first, second = one[rows // len(two)], two[rows % len(two)]
        return (first[:, :, None, None] * second[:, None]).flatten(1)

    def changed(self, plain: torch.Tensor, begin: int, norms: torch.Tensor | None) -> torch.Tensor:
        """What is to be added to rows of the weight, all of them from `begin` on: (rows, in x kernel)."""
        delta = self.difference(begin, begin + len(plain))
        if not self.has_magnitudes:
            return delta.mul_(self.adapter.weight)
        delta += plain
        if norms is None:
            magnitude = self.tensors["magnitude"].flatten()[begin : begin + len(plain), None]
            delta *= magnitude / (delta.norm(dim=1, keepdim=True) + EPSILON)
        else:
            delta *= (self.tensors["input_magnitude"].flatten() / norms).repeat_interleave(self.kernel)
        return delta.sub_(plain).mul_(self.adapter.weight)

    @property
    def has_magnitudes(self) -> bool:
        """Whether norms have a say."""
        return not self.tensors.keys().isdisjoint(("magnitude", "input_magnitude"))


def _with_kernel(kernel: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Tucker's product: (i, j, …), (i, rows) and (j, columns) to (rows, columns x …)."""
    return torch.einsum("ijk,ip,jr->prk", kernel.view(*kernel.shape[:2], -1), a, b).flatten(1)


@dataclass(frozen=True, slots=True)
class Changes:
    """All adapters of one weight, and what reads their tensors."""

    adapters: tuple[Adapter, ...]
    read: Read

    def loaded(self, adapter: Adapter, device: torch.device, shape: Sequence[int]) -> Loaded:
        """One of them for a weight of this shape."""
        tensors = {role: self.read(origin, device, torch.float32) for role, origin in adapter.tensors.items()}
        return Loaded(adapter, tensors, torch.Size(shape[2:]).numel())

    @property
    def merging_bytes(self) -> int:
        """What it takes to merge them into a weight."""
        numbers = sum(origin.numel for adapter in self.adapters for origin in adapter.tensors.values())
        return PIECES * PIECE_BYTES + 2 * numbers * torch.float32.itemsize


def changes_of(component: Component, source: Source) -> dict[str, Changes]:
    """What changes which of a component's weights, from its open files. Reading one with NaN raises NotFinite."""
    opened: dict[tuple[Path, str, tuple[int, int] | None, bool], Stored] = {}

    def read(origin: Origin, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        key = origin.path, origin.stored, origin.rows, origin.swapped
        if key not in opened:
            opened[key] = source.open(origin)
            _require_finite(opened[key], origin)
        return opened[key].cast(device, dtype)

    return {name: Changes(adapters, read) for name, adapters in component.adapters.items()}


def _require_finite(stored: Stored, origin: Origin) -> None:
    if not torch.isfinite(stored.cast(torch.device("cpu"), torch.float32)).all():
        where = f"{echo(origin.path)} has NaN or infinity in {echo(origin.stored)}"
        raise NotFinite(f"{where}: fetch the LoRA again, or leave it out")


class Merged(Stored):
    """A weight with its adapters merged in."""

    def __init__(self, base: Stored, changes: Changes) -> None:
        super().__init__(base.tensor, base.mapping)
        self._base, self._changes = base, changes

    @property
    def is_plain(self) -> bool:
        """It lies nowhere."""
        return False

    def fill(self, room: torch.Tensor) -> torch.Tensor:
        """In FP32, rounded once."""
        for begin, total in self._merged(slice(None), room.device):
            room[begin : begin + len(total)].copy_(total.view(-1, *room.shape[1:]))
        return room

    def slice_of(self, rows: slice, columns: slice, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Some rows and columns, rounded once."""
        return torch.cat([total[:, columns].to(dtype, copy=True) for _, total in self._merged(rows, device)])

    def _merged(self, rows: slice, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
        """Rows of the changed weight in FP32, as `pieces` gives those of the weight."""
        shape = self.tensor.shape
        all_loaded = [self._changes.loaded(adapter, device, shape) for adapter in self._changes.adapters]
        norms = [
            input_norms(self._base, loaded, device) if "input_magnitude" in loaded.tensors else None
            for loaded in all_loaded
        ]
        first, last, _ = rows.indices(len(self.tensor))
        for begin, plain in pieces(self._base, device, first, last):
            total = plain.clone()
            for loaded, its in zip(all_loaded, norms, strict=True):
                total += loaded.changed(plain, begin, its)
            wanted = max(begin, first)
            yield wanted, total[wanted - begin : last - begin]

    def cast(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """A copy: it lies nowhere."""
        return self.fill(torch.empty(self.tensor.shape, device=device, dtype=dtype))


def pieces(
    base: Stored, device: torch.device, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of a weight in FP32, some at a time: which is the first, and the rows as (rows, in x kernel).

    They are cut the same way whichever rows are wanted, so that their bits are the same: the outermost pieces may have
    rows beside those from `first` to `last`.
    """
    rows = len(base.tensor)
    size = rows_at_a_time(base.tensor.shape)
    for begin in range(first - first % size, rows if last is None else last, size):
        yield begin, base.exact(begin, min(begin + size, rows), device).flatten(1)


def rows_at_a_time(shape: Sequence[int]) -> int:
    """Rows of a weight that are PIECE_BYTES in FP32."""
    return max(1, PIECE_BYTES // (torch.Size(shape[1:]).numel() * torch.float32.itemsize))


def input_norms(base: Stored, loaded: Loaded, device: torch.device) -> torch.Tensor:
    """Norms of the changed weight for each input, (in,)."""
    sums = torch.zeros(base.tensor.shape[1], device=device)
    for begin, plain in pieces(base, device):
        changed = loaded.difference(begin, begin + len(plain)).add_(plain)
        sums += changed.square_().view(len(plain), len(sums), -1).sum((0, 2))
    return sums.sqrt_().add_(EPSILON)


def output_norms(base: Stored, loaded: Loaded, device: torch.device) -> torch.Tensor:
    """The same for each output, (out,)."""
    norms = [
        loaded.difference(begin, begin + len(plain)).add_(plain).norm(dim=1) for begin, plain in pieces(base, device)
    ]
    return torch.cat(norms).add_(EPSILON)
