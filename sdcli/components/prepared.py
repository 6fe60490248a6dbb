"""A prepared copy of a component's weights on disk: packed for this processor, in the arithmetic's type, mapped.

Mapped pages cost no footprint, and a packed weight needs neither casting nor laying out: a layer computes with it
where it lies. So what streams costs no more time than what stays, as long as the page cache holds it.

One file of weights, each at a multiple of a page, and an index beside it. The index comes last: a copy without one
is none.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sdcli.components.arena import Arena
from sdcli.components.opaque import description, opaque, raw_bytes
from sdcli.errors import SdcliError, echo
from sdcli.memory.prepared import outdated, unfinished
from sdcli.models.header import sample_sha256

WEIGHTS, INDEX = "weights.bin", "index.json"

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class PreparedCopy:
    """A copy that is there, mapped for reading."""

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, list[dict[str, Any]]] = json.loads((folder / INDEX).read_text("utf-8"))["weights"]
        self._path = folder / WEIGHTS
        with self._path.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._mapping.madvise(mmap.MADV_SEQUENTIAL)  # used in turn: what was used longest ago is to go first
        with warnings.catch_warnings(action="ignore"):  # torch would rather have memory that it may write to
            self._address = torch.frombuffer(self._mapping, dtype=torch.uint8).data_ptr()

    def weights(self, name: str) -> list[torch.Tensor]:
        """The packed weights that `name` was prepared as, where they lie."""
        return [_weight(self._address + entry["begin"], entry, self._mapping) for entry in self._entries[name]]

    def copied(self, name: str, arena: Arena) -> list[torch.Tensor]:
        """Copies of them in the arena."""
        return [self._copied(entry, arena.take(entry["nbytes"])) for entry in self._entries[name]]

    def _copied(self, entry: dict[str, Any], room: torch.Tensor) -> torch.Tensor:
        with self._path.open("rb", buffering=0) as file:
            file.seek(entry["begin"])
            view = memoryview(room.numpy().data)
            while view:
                read = file.readinto(view)
                if not read:
                    raise SdcliError(f"{echo(self._path)} has become shorter: run again, it will be made anew")
                view = view[read:]
        return _weight(room.data_ptr(), entry, room)

    def places(self, name: str) -> list[tuple[int, int]]:
        """Address and length of each of them; none of a weight that is not packed."""
        return [(self._address + entry["begin"], entry["nbytes"]) for entry in self._entries.get(name, ())]


def _weight(address: int, entry: dict[str, Any], owner: object) -> torch.Tensor:
    described = bytes.fromhex(entry["description"])
    return opaque(address, tuple(entry["shape"]), _DTYPES[entry["dtype"]], described, owner)


def open_copy(folder: Path) -> PreparedCopy | None:
    """The copy in `folder`, if there is a whole and undamaged one."""
    try:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        if _digest(folder, index["weights"]) != index["digest"]:
            return None
        return PreparedCopy(folder)
    except (OSError, ValueError, LookupError, TypeError):
        return None


def make_copy(folder: Path, names: Iterable[str], pack: Callable[[str], list[torch.Tensor]]) -> PreparedCopy:
    """Pack one weight after another into `folder`, which gets its name when it is whole.

    Raises SdcliError when the disk does not take it.
    """
    half = unfinished(folder, os.getpid())
    try:
        shutil.rmtree(half, ignore_errors=True)  # of a process that was killed and had our number
        half.mkdir(parents=True)
        with (half / WEIGHTS).open("wb") as file:
            entries = {name: _write(file, pack, name) for name in names}
            file.truncate(_next_page(file))
        index = {"digest": _digest(half, entries), "weights": entries}
        (half / INDEX).write_text(json.dumps(index), "utf-8")
        _move_in(half, folder)
        return PreparedCopy(folder)
    except OSError as error:
        raise SdcliError(
            f"cannot prepare the denoiser in {echo(folder.parent)}: {error.strerror or echo(error)};"
            " make room, or set SDCLI_CACHE to another disk"
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write(file: BinaryIO, pack: Callable[[str], list[torch.Tensor]], name: str) -> list[dict[str, Any]]:
    """One weight's entries in the index. It is freed before the next one is made."""
    entries = []
    for packed in pack(name):
        begin = file.seek(_next_page(file))
        nbytes = file.write(raw_bytes(packed))
        told = {"shape": list(packed.shape), "dtype": str(packed.dtype), "description": description(packed).hex()}
        entries.append({"begin": begin, "nbytes": nbytes, **told})
    return entries


def _next_page(file: BinaryIO) -> int:
    return -(-file.tell() // mmap.PAGESIZE) * mmap.PAGESIZE


def _digest(folder: Path, entries: dict[str, list[dict[str, Any]]]) -> str:
    """Of the index and of blocks spread over the weights."""
    return hashlib.sha256((sample_sha256(folder / WEIGHTS) + json.dumps(entries)).encode()).hexdigest()


def _move_in(half: Path, folder: Path) -> None:
    """Give the copy its name, unless another run was faster; a damaged one goes, and those that nobody needs."""
    if open_copy(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(half, folder)
        except OSError:
            if open_copy(folder) is None:
                raise
    for other in outdated(folder):
        shutil.rmtree(other, ignore_errors=True)
