"""The header of a safetensors file, read with suspicion before any library opens the file.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' data, gapless
(https://github.com/huggingface/safetensors#format). A malformed file makes libraries read it whole as
text, or map it and die of SIGBUS; so lengths, types, shapes and offsets are all checked here.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from sdcli.domain import TensorInfo, WeightFile
from sdcli.errors import SdcliError, echo
from sdcli.sniff import HEAD_BYTES, detect
from sdcli.units import KIB, MIB, format_size

HEADER_LIMIT_BYTES = 4 * MIB
"""Stable Diffusion 1.5's largest header is 0.1 MiB; parsing JSON costs some fifteen times its size."""

NOTE_LIMIT = 64 * KIB
"""Characters of a note: what a LoRA was trained on may be megabytes, and nobody asks for that."""

_DOWNLOADED = {"HTML": "an HTML page", "XML": "an XML page", "JSON": "a JSON message", "text": "plain text"}
"""What a server sends in place of a file that it does not give."""

ITEM_BYTES = (
    dict.fromkeys(("F64", "I64", "U64", "C64"), 8)
    | dict.fromkeys(("F32", "I32", "U32"), 4)
    | dict.fromkeys(("F16", "BF16", "I16", "U16"), 2)
    | dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1)
)
"""The format's types of whole bytes."""


def stamp_of(status: os.stat_result) -> str:
    """What tells a file from any other that lies or lay in its place: the inode, the size and both times.

    The time of change cannot be set, so that a file edited or replaced under its old time of modification has another.
    """
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def read_header(path: Path) -> WeightFile:
    """Check a safetensors file from its header and size alone.

    Raises SdcliError for anything that is not a whole, well-formed safetensors file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device never ends
            raise SdcliError(f"{echo(path)} is not a regular file: give a safetensors file")
        size_bytes = status.st_size
        with path.open("rb") as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            start = file.read(HEAD_BYTES)
            if not start:
                raise SdcliError(f"{echo(path)} is empty: fetch it again")
            if start[8:9] != b"{":  # the length of a short header may look like the magic of a pickle
                _refuse_other_formats(path, start)
            if len(start) < 8:
                raise SdcliError(
                    f"{echo(path)} is truncated: {size_bytes} bytes, a header alone needs 8; fetch it again"
                )
            length = int.from_bytes(start[:8], "little")
            if length > size_bytes - 8:
                raise SdcliError(
                    f"{echo(path)} is truncated or not safetensors: its header claims {length} bytes"
                    f" and the file has {size_bytes}; fetch it again"
                )
            if length > HEADER_LIMIT_BYTES:
                raise SdcliError(
                    f"{echo(path)} has a header of {format_size(length)}, more than"
                    f" {format_size(HEADER_LIMIT_BYTES)}: refused; fetch it from a source you trust"
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror}; check the path and its permissions") from error
    try:
        entries = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise SdcliError(f"{echo(path)} has a malformed header ({echo(error)}): fetch it again") from error
    if not isinstance(entries, dict):
        raise SdcliError(f"{echo(path)} has a malformed header: not a table of tensors; fetch it again")
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise SdcliError(f"{echo(path)} has a malformed header: its notes are not text; fetch it again")
    tensors = {name: _tensor_info(path, name, entry) for name, entry in entries.items()}
    _check_layout(path, tensors, size_bytes - 8 - length)
    short = {key: note for key, note in notes.items() if len(note) <= NOTE_LIMIT}
    return WeightFile(path, size_bytes, tensors, hashlib.sha256(raw).hexdigest(), stamp, short)


def _refuse_other_formats(path: Path, start: bytes) -> None:
    kind = detect(start)
    if kind == "pickle":
        raise SdcliError(
            f"{echo(path)} holds a pickle, which can run code when opened: refused; only safetensors files are read"
        )
    if kind == "Git LFS pointer":
        raise SdcliError(f"{echo(path)} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")
    if kind in _DOWNLOADED and (kind != "text" or start.isascii()):
        raise SdcliError(f"{echo(path)} is {_DOWNLOADED[kind]}, not safetensors: the download failed, fetch it again")
    if kind not in (None, "text"):
        raise SdcliError(f"{echo(path)} is a {kind} file, not safetensors: give safetensors, or fetch it again")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("the same key twice")
    return table


def _tensor_info(path: Path, name: str, entry: object) -> TensorInfo:
    def natural(value: object) -> bool:
        return type(value) is int and 0 <= value < 2**48

    def naturals(value: object) -> bool:
        return isinstance(value, list) and len(value) <= 8 and all(map(natural, value))

    match entry:
        case {"dtype": str(dtype), "shape": shape, "data_offsets": [begin, end], **rest} if (
            not rest and dtype in ITEM_BYTES and naturals(shape) and naturals([begin, end])
        ):
            info = TensorInfo(dtype, tuple(shape), begin, end)
            if info.numel * ITEM_BYTES[dtype] == info.nbytes:
                return info
    raise SdcliError(f"{echo(path)} describes its tensor {echo(name)} wrongly: fetch it again")


def _check_layout(path: Path, tensors: dict[str, TensorInfo], data_bytes: int) -> None:
    at = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            raise SdcliError(f"{echo(path)} has a gap or an overlap before its tensor {echo(name)}: fetch it again")
        at = info.end
    if at != data_bytes:
        kind = "truncated" if at > data_bytes else "longer than its header says"
        raise SdcliError(f"{echo(path)} is {kind}: expected {at} bytes of tensors, it has {data_bytes}; fetch it again")


def data_sha256(file: WeightFile) -> str:
    """The digest of a file's tensors without its header, by which other programs look a LoRA up.

    As A1111's modules/hashes.py, addnet_hash_safetensors. Raises SdcliError where it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with file.path.open("rb") as opened:
            opened.seek(file.size_bytes - max((info.end for info in file.tensors.values()), default=0))
            while some := opened.read(MIB):
                digest.update(some)
    except OSError as error:
        raise SdcliError(f"cannot read {echo(file.path)}: {error.strerror}; check its permissions") from error
    return digest.hexdigest()


def sample_sha256(path: Path, blocks: int = 64, block_bytes: int = 4 * KIB) -> str:
    """A digest of blocks spread evenly over a file: finds a truncated, emptied or replaced file in milliseconds.

    A few flipped bits escape it; a digest of the whole would cost seconds before every run.
    """
    with path.open("rb") as file:
        return sampled_sha256(file, blocks, block_bytes)


def sampled_sha256(file: BinaryIO, blocks: int = 64, block_bytes: int = 4 * KIB) -> str:
    """The same of an open file."""
    digest = hashlib.sha256()
    size_bytes = file.seek(0, os.SEEK_END)
    for index in range(blocks):
        file.seek(max(0, size_bytes - block_bytes) * index // max(1, blocks - 1))
        digest.update(file.read(block_bytes))
    return digest.hexdigest()
