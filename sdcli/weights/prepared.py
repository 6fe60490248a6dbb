"""A prepared copy of a component's weights on disk: packed for this processor, in the arithmetic's type, mapped.

Mapped pages cost no footprint, and a packed weight needs neither casting nor laying out: a layer computes with it
where it lies. So what streams costs no more time than what stays, as long as the page cache holds it.

One file of weights, each at a multiple of a page, and an index beside it. The index comes last: a copy without one
is none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import mmap
import os
import shutil
import stat
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sdcli.errors import SdcliError, echo
from sdcli.models.header import sampled_sha256
from sdcli.units import MIB
from sdcli.weights.arena import Arena
from sdcli.weights.copies import INDEX, WEIGHTS, making, remove, sweep, unfinished
from sdcli.weights.opaque import description, opaque, raw_bytes, size_of

INDEX_LIMIT_BYTES = 64 * MIB
"""Stable Diffusion 1.5's index has 1.5 MiB."""

_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class PreparedCopy:
    """A copy that is there, mapped for reading: from one open file, whatever becomes of its folder."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError, ValueError, LookupError or TypeError for what is no whole copy."""
        index = json.loads(_read_small(folder / INDEX))
        self._entries: dict[str, list[dict[str, Any]]] = index["weights"]
        self._path = folder / WEIGHTS
        self._file = _open_regular(self._path)
        weakref.finalize(self, self._file.close)
        size_bytes = os.fstat(self._file.fileno()).st_size
        sound = all(_is_sound(entry, size_bytes) for some in self._entries.values() for entry in some)
        if not sound or index["digest"] != _digest(self._file, self._entries):
            raise ValueError("damaged")
        self._mapping = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
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
        view, at = memoryview(room.numpy().data), entry["begin"]
        while view:
            try:
                read = os.preadv(self._file.fileno(), [view], at)
            except OSError as error:
                raise SdcliError(
                    f"cannot read {echo(self._path)}: {error.strerror}; delete it and run again"
                ) from error
            if not read:
                raise SdcliError(f"{echo(self._path)} has become shorter: run again, it will be made anew")
            view, at = view[read:], at + read
        return _weight(room.data_ptr(), entry, room)

    def places(self, name: str) -> list[tuple[int, int]]:
        """Address and length of each of them; none of a weight that is not packed."""
        return [(self._address + entry["begin"], entry["nbytes"]) for entry in self._entries.get(name, ())]


def _weight(address: int, entry: dict[str, Any], owner: object) -> torch.Tensor:
    described = bytes.fromhex(entry["description"])
    weight = opaque(address, tuple(entry["shape"]), _DTYPES[entry["dtype"]], described, owner)
    if size_of(weight) != entry["nbytes"]:
        raise SdcliError("a prepared copy is damaged: sdcli models gc takes it away; run again")
    return weight


def _is_sound(entry: dict[str, Any], size_bytes: int) -> bool:
    """Whether a weight as the index tells of it lies within the file."""
    begin, nbytes, shape = entry["begin"], entry["nbytes"], entry["shape"]
    whole = all(type(one) is int and one >= 0 for one in (begin, nbytes, *shape)) and begin + nbytes <= size_bytes
    bytes.fromhex(entry["description"])
    return whole and math.prod(shape) * _DTYPES[entry["dtype"]].itemsize <= nbytes


def open_copy(folder: Path) -> PreparedCopy | None:
    """The copy in `folder`, if there is a whole and undamaged one."""
    try:
        return PreparedCopy(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def make_copy(folder: Path, names: Iterable[str], pack: Callable[[str], list[torch.Tensor]]) -> PreparedCopy:
    """Pack one weight after another into `folder`, which gets its name when it is whole and on the disk.

    What another run is making just now is waited for. Raises SdcliError when the disk does not take it.
    """
    half = unfinished(folder, os.getpid())
    try:
        shutil.rmtree(half, ignore_errors=True)  # of a process that was killed and had our number
        half.mkdir(parents=True)
        with making(folder):
            copy = open_copy(folder)  # of another run, which was faster
            if copy is None:
                _write_all(half, names, pack)
                copy = _moved_in(half, folder)
        sweep(folder)
        return copy
    except OSError as error:
        raise SdcliError(
            f"cannot prepare the denoiser in {echo(folder.parent)}: {error.strerror or echo(error)};"
            " make room, or set SDCLI_CACHE to another disk"
        ) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _write_all(half: Path, names: Iterable[str], pack: Callable[[str], list[torch.Tensor]]) -> None:
    """The weights, then the index of them."""
    with (half / WEIGHTS).open("w+b") as file:
        entries = {name: _write(file, pack, name) for name in names}
        file.truncate(_next_page(file))
        file.flush()
        os.fsync(file.fileno())
        index = {"digest": _digest(file, entries), "weights": entries}
    with (half / INDEX).open("w", encoding="utf-8") as text:
        json.dump(index, text)
        text.flush()
        os.fsync(text.fileno())
    _sync_folder(half)


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


def _digest(file: BinaryIO, entries: dict[str, list[dict[str, Any]]]) -> str:
    """Of the index and of blocks spread over the weights."""
    return hashlib.sha256((sampled_sha256(file) + json.dumps(entries)).encode()).hexdigest()


def _moved_in(half: Path, folder: Path) -> PreparedCopy:
    """Give the copy its name, unless another run was faster; a damaged one goes. Raises OSError."""
    copy = open_copy(folder)
    if copy is None:
        remove(folder, though_used=True)
        with suppress(OSError):
            os.rename(half, folder)
            _sync_folder(folder.parent)
        copy = open_copy(folder)
    if copy is None:
        raise OSError(errno.EIO, "what was written cannot be read")
    return copy


def _sync_folder(folder: Path) -> None:
    """Have the names in it on the disk; not every file system can."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _open_regular(path: Path) -> BinaryIO:
    """A file of this user's, or the system's, to read. Raises OSError for a pipe, which would be waited for, for all
    else that is none, and for another user's: the library believes what a description says."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(opened)
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()):
        os.close(opened)
        raise OSError(errno.EINVAL, "not a regular file of this user's")
    return os.fdopen(opened, "rb")


def _read_small(path: Path) -> bytes:
    with _open_regular(path) as file:
        text = file.read(INDEX_LIMIT_BYTES + 1)
    if len(text) > INDEX_LIMIT_BYTES:
        raise ValueError("too large for an index")
    return text
