"""A component's weight files, memory-mapped, and whether they hold what its module needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from sdcli.errors import SdcliError, echo
from sdcli.models.disks import lies_in_memory
from sdcli.models.folder import Component
from sdcli.models.kinds import likely_kind
from sdcli.units import KIB, MIB
from sdcli.weights.read_ahead import let_go

PIECE_BYTES = 2 * MIB
"""Read at a time of a file whose mapped pages count."""

LOOKED_UP = 32
"""Rows of a table at a time: some 64 KiB are mapped for each."""

AROUND_BYTES = 64 * KIB
"""Pages this far around one that is used are mapped as well."""

_counted: dict[int, tuple[int, int]] = {}
"""Addresses of the tensors that lie on a RAM disk, where a page counts as long as it is mapped; and from where to where
their file is mapped."""


class Mapped:
    """The component's files, memory-mapped: their tensors are clean pages that cost no footprint.

    On a RAM disk they do: whoever reads there through `copied` or `cast` lets the pages go again.
    """

    def __init__(self, component: Component) -> None:
        self._tensors = component.weights()
        self._files: dict[Path, Any] = {}
        self._ends = {file.path: max((i.end for i in file.tensors.values()), default=0) for file in component.files}
        self._counted: set[int] = set()

    def __enter__(self) -> Mapped:
        for path in {path for path, _, _ in self._tensors.values()}:
            with _told_of(path):
                self._files[path] = safe_open(path, framework="pt", device="cpu")
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.clear()
        for address in self._counted:
            _counted.pop(address, None)

    def tensor(self, name: str) -> torch.Tensor:
        """The stored tensor, in the file's type. Never write to it: a written page costs memory."""
        path, stored, info = self._tensors[name]
        with _told_of(path):
            tensor: torch.Tensor = self._files[path].get_tensor(stored)
        if lies_in_memory(path):
            begin = tensor.data_ptr() - info.begin
            _counted[tensor.data_ptr()] = begin, begin + self._ends[path]
            self._counted.add(tensor.data_ptr())
        return tensor

    def place(self, name: str) -> tuple[str, int]:
        """Where the tensor lies, to read files from front to back."""
        path, _, info = self._tensors[name]
        return str(path), info.begin


def counts(stored: torch.Tensor) -> bool:
    """Whether the pages of a mapped tensor count in the footprint."""
    return stored.data_ptr() in _counted


def copied(room: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """`room`, with the numbers of a mapped tensor of the same shape in its own type."""
    if not counts(stored) or stored.dim() == 0:
        return room.copy_(stored)
    rows = max(1, PIECE_BYTES * len(stored) // max(1, stored.nbytes))
    for into, piece in zip(room.split(rows), stored.split(rows), strict=True):
        into.copy_(piece)
        _let_go(piece, *_counted[stored.data_ptr()])
    return room


def _let_go(piece: torch.Tensor, first: int, end: int) -> None:
    """The piece's pages, and those around it that were mapped with them, within the file's own mapping."""
    begin = max(first, piece.data_ptr() - AROUND_BYTES)
    let_go((begin, min(end, piece.data_ptr() + piece.nbytes + AROUND_BYTES) - begin))


def cast(stored: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A mapped tensor on the device in this type; itself, if it is there and of that type and costs nothing."""
    if not counts(stored):
        return stored.to(device, dtype)
    return copied(torch.empty(stored.shape, device=device, dtype=dtype), stored)


def looked_up(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Rows of a mapped table whose pages count: a few at a time, as the system maps what is around each as well."""
    rows = []
    for some in ids.flatten().split(LOOKED_UP):
        rows.append(table[some])
        _let_go(table, *_counted[table.data_ptr()])
    return torch.cat(rows).view(*ids.shape, table.shape[1])


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """What the library raises for a file that it cannot map, in one line."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise SdcliError(
            f"cannot read {echo(path)} ({echo(error)}): it changed or its disk failed; check it and run again"
        ) from error


def require_match(component: Component, shapes: dict[str, torch.Size], parts: tuple[str, ...]) -> None:
    """The files must have exactly the tensors of the module, in its shapes: nothing is ever filled in at random."""
    stored = {name: info.shape for name, (_, _, info) in component.weights().items() if name.startswith(parts)}
    for kind, names in (
        ("lacks the tensors", [name for name in shapes if name not in stored]),
        ("has unexpected tensors:", [name for name in stored if name not in shapes]),
        (
            "has wrong shapes for the tensors",
            [n for n in shapes if n in stored and not _same_shape(shapes[n], stored[n])],
        ),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            likely = likely_kind(stored)
            raise SdcliError(
                f"{echo(component.folder)} {kind} {', '.join(echo(name) for name in names[:3])}{more}:"
                f" not the model that its config describes{f'; it looks like {likely}' if likely else ''}"
            )


def _same_shape(shape: Iterable[int], stored: Iterable[int]) -> bool:
    """Equal up to sides of length 1: old files keep the autoencoder's attention as 1x1 convolutions."""
    return [n for n in shape if n != 1] == [n for n in stored if n != 1]
