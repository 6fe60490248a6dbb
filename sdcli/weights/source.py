"""The gate for stored weights: whatever lies in a model's files comes through `Stored.fill`.

A weight is filled into memory that somebody has ready, in that memory's type. Where it lies as its layer wants it, it
can be used as it is mapped as well, which costs no footprint. Weights that lie otherwise (a slice of a fused one, one
with a LoRA merged in, one of eight bits) are kinds of `Stored` of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdcli.domain import Component, Origin
from sdcli.errors import SdcliError, echo
from sdcli.models.disks import lies_in_memory
from sdcli.units import KIB, MIB
from sdcli.weights.float8 import widen
from sdcli.weights.read_ahead import Place, let_go

PIECE_BYTES = 2 * MIB
"""Read at a time of a file whose mapped pages count."""

LOOKED_UP = 32
"""Rows of a table at a time: some 64 KiB are mapped for each."""

AROUND_BYTES = 64 * KIB
"""Pages this far around one that is used are mapped as well."""


class Stored:
    """One weight as it lies in a memory-mapped file: clean pages, which cost no footprint.

    `mapping` is where its file is mapped, begin and end, if that is on a RAM disk: there pages count, and whoever reads
    lets them go again.
    """

    def __init__(self, tensor: torch.Tensor, mapping: Place | None = None, scale: float = 1.0) -> None:
        self.tensor = tensor
        """As it is mapped, in the file's type. Never write to it: a written page costs memory."""
        self._mapping = mapping
        self._scale = scale
        """What its numbers are to be multiplied by, if they have eight bits."""

    @property
    def mapping(self) -> Place | None:
        """Where its file is mapped, if that counts in the footprint."""
        return self._mapping

    @property
    def counts(self) -> bool:
        """Whether its mapped pages count in the footprint."""
        return self._mapping is not None

    @property
    def is_plain(self) -> bool:
        """Whether layers can use it as it is mapped."""
        return not self.counts and self.tensor.dtype.itemsize > 1

    @property
    def places(self) -> list[Place]:
        """Where it may be read ahead: nowhere, if its pages count."""
        return [] if self.counts else [(self.tensor.data_ptr(), self.tensor.nbytes)]

    def fill(self, room: torch.Tensor) -> torch.Tensor:
        """`room`, of the same shape, with the weight's numbers in its own type."""
        if self._mapping is None or self.tensor.dim() == 0:
            _copy(self.tensor, room)
        else:
            rows = max(1, PIECE_BYTES * len(self.tensor) // max(1, self.tensor.nbytes))
            for into, piece in zip(room.split(rows), self.tensor.split(rows), strict=True):
                _copy(piece, into)
                self._let_go(piece)
        return room if self._scale == 1.0 else room.mul_(self._scale)

    def exact(self, begin: int, end: int, device: torch.device) -> torch.Tensor:
        """Some of its rows on the device in FP32; never to be written to."""
        piece = self.tensor[begin:end]
        rows = _cast(piece, device, torch.float32, self.counts)
        self._let_go(piece)
        return rows if self._scale == 1.0 else rows * self._scale

    def slice_of(self, rows: slice, columns: slice, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """Some rows and columns on the device in this type; never to be written to."""
        piece = self.tensor[rows, columns]
        cast = _cast(piece, device, dtype, self.counts or self._scale != 1.0)
        self._let_go(self.tensor[rows])
        return cast if self._scale == 1.0 else cast.mul_(self._scale)

    def cast(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """The weight on the device in this type: as it is mapped, if it is there and of that type and costs nothing."""
        if self.is_plain:
            return self.tensor.to(device, dtype)
        return self.fill(torch.empty(self.tensor.shape, device=device, dtype=dtype))

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of a table, in the file's type, those of eight bits in FP32: where pages count a few at a time, with
        what is mapped around each."""
        if self.tensor.dtype.itemsize == 1:
            few = self.tensor.view(torch.uint8)[ids].view(self.tensor.dtype)
            return _cast(few, few.device, torch.float32, True) * self._scale
        if not self.counts:
            return self.tensor[ids]
        some_rows = []
        for some in ids.flatten().split(LOOKED_UP):
            some_rows.append(self.tensor[some])
            self._let_go(self.tensor)
        return torch.cat(some_rows).view(*ids.shape, self.tensor.shape[1])

    def _let_go(self, piece: torch.Tensor) -> None:
        """The piece's pages, and those around it that were mapped with them, within the file's own mapping."""
        if self._mapping is not None:
            first, end = self._mapping
            begin = max(first, piece.data_ptr() - AROUND_BYTES)
            let_go((begin, min(end, piece.data_ptr() + piece.nbytes + AROUND_BYTES) - begin))


def _cast(piece: torch.Tensor, device: torch.device, dtype: torch.dtype, copy: bool) -> torch.Tensor:
    if piece.dtype.itemsize > 1:
        return piece.to(device, dtype, copy=copy)
    return widen(piece, torch.empty(piece.shape, device=device, dtype=dtype))


def _copy(piece: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    return room.copy_(piece) if piece.dtype.itemsize > 1 else widen(piece, room)


class Swapped(Stored):
    """A weight whose layer has the second half of its rows first."""

    @property
    def is_plain(self) -> bool:
        """It lies the other way round."""
        return False

    def fill(self, room: torch.Tensor) -> torch.Tensor:
        """See `Stored`."""
        half = len(room) // 2
        for begin, end in ((0, half), (half, len(room))):
            room[begin:end].copy_(self.exact(begin, end, room.device))
        return room

    def exact(self, begin: int, end: int, device: torch.device) -> torch.Tensor:
        """See `Stored`."""
        return torch.cat([super(Swapped, self).exact(*some, device) for some in self._there(begin, end)])

    def slice_of(self, rows: slice, columns: slice, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """See `Stored`."""
        begin, end, _ = rows.indices(len(self.tensor))
        some = [slice(*each) for each in self._there(begin, end)]
        return torch.cat([super(Swapped, self).slice_of(each, columns, device, dtype) for each in some])

    def _there(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Where these rows are in the file."""
        half = len(self.tensor) // 2
        first, second = (begin + half, min(end, half) + half), (max(begin, half) - half, end - half)
        return [some for some in (first, second) if some[0] < some[1]]


class Source:
    """A component's weight files, memory-mapped while it is entered."""

    def __init__(self, component: Component) -> None:
        self._tensors = component.weights()
        self._files: dict[Path, Any] = {}
        every = (*component.files, *component.adapter_files)
        self._ends = {file.path: max((i.end for i in file.tensors.values()), default=0) for file in every}
        self._added = {file.path for file in component.adapter_files}

    def __enter__(self) -> Source:
        for path in {origin.path for origin in self._tensors.values()} | self._added:
            with _told_of(path):
                self._files[path] = safe_open(path, framework="pt", device="cpu")
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.clear()

    def stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        """The weight of this name, in the shape that its layer has it in."""
        return self.open(self._tensors[name], shape)

    def open(self, origin: Origin, shape: tuple[int, ...] | None = None) -> Stored:
        """What lies there, of a weight or of an adapter."""
        with _told_of(origin.path):
            file = self._files[origin.path]
            tensor: torch.Tensor = file.get_tensor(origin.stored)
            scale = 1.0 if origin.scale is None else float(file.get_tensor(origin.scale))
        begin = tensor.data_ptr() - origin.info.begin
        mapping = (begin, begin + self._ends[origin.path]) if lies_in_memory(origin.path) else None
        piece = tensor if origin.rows is None else tensor[slice(*origin.rows)]
        piece = piece.t() if origin.turned else piece
        kind = Swapped if origin.swapped else Stored
        return kind(piece if shape is None else piece.view(shape), mapping, scale)

    def place(self, name: str) -> tuple[str, int]:
        """Where the weight lies, to read files from front to back."""
        origin = self._tensors[name]
        return str(origin.path), origin.info.begin


def numbers_at(origin: Origin) -> torch.Tensor:
    """The numbers of a small tensor, in FP32 and in memory."""
    with _told_of(origin.path), safe_open(origin.path, framework="pt", device="cpu") as file:
        tensor: torch.Tensor = file.get_tensor(origin.stored)
        return tensor.float().clone()


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """What the library raises for a file that it cannot map, in one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SdcliError(
            f"cannot read {echo(path)} ({echo(error)}): it changed or its disk failed; check it and run again"
        ) from error
