"""The texts in a picture's file: chunks of PNG, EXIF of JPEG and WebP. Decodes no pixels.

A text larger than what pictures are given (images/encode.py) is passed over, and so is one that cannot be read.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.images.read import DAMAGE, FORMATS, SUPPORTED
from sdcli.sniff import HEAD_BYTES, detect

TEXT_CAP = 2**20
"""Bytes of one text."""

_CHUNKS = 2**12
"""That are looked at."""

_EXIF_FOLDER, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E


@dataclass(frozen=True, slots=True)
class Texts:
    """What a file says, by PNG's names for it: EXIF's comment is `parameters`, its description is `sdcli`."""

    format: str
    width: int
    height: int
    by_name: dict[str, str]


def texts_in(path: Path) -> Texts:
    """The texts of a picture. Raises BadRequest for what is no file, SdcliError for what is no picture or damaged."""
    try:
        if not path.is_file():
            raise BadRequest(f"{echo(path)} is not a file: give a picture")
        with path.open("rb") as stream:
            kind = detect(stream.read(HEAD_BYTES))
            stream.seek(0)
            if kind not in FORMATS:
                raise SdcliError(f"{echo(path)} is {f'of type {kind}' if kind else 'no picture'}: {SUPPORTED}")
            with warnings.catch_warnings(action="ignore"):
                return _in_png(stream) if kind == "PNG" else _in_exif(stream, kind)
    except SdcliError:
        raise
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror or echo(error)}") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise SdcliError(f"{echo(path)} is a damaged picture ({echo(error)}): export or download it again") from error


def _in_png(stream: BinaryIO) -> Texts:
    stream.seek(8)
    size, texts = (0, 0), dict[str, str]()
    for _ in range(_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            break
        length, name = int.from_bytes(head[:4]), head[4:]
        if name == b"IHDR":
            width, height = struct.unpack(">II", stream.read(8))
            size, length = (width, height), length - 8
        elif name in (b"tEXt", b"zTXt", b"iTXt") and length <= TEXT_CAP + 256:
            data, length = stream.read(length), 0
            with suppress(ValueError, zlib.error):
                key, text = _text_of(name, data)
                texts.setdefault(key, text)
        elif name == b"IEND":
            break
        stream.seek(length + 4, 1)
    if 0 in size:
        raise ValueError("it has no size")
    return Texts("PNG", *size, texts)


def _text_of(name: bytes, data: bytes) -> tuple[str, str]:
    """Keyword and text of a chunk (PNG specification, 11.3.3). Raises ValueError and zlib.error for what is none."""
    keyword, _, rest = data.partition(b"\0")
    key = keyword.decode("latin-1")
    if name == b"tEXt":
        return key, rest.decode("latin-1")
    if name == b"zTXt":
        return key, _unpacked(rest[1:]).decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:]
    raw = rest.split(b"\0", 2)[2] if rest.count(b"\0") >= 2 else b""
    return key, (_unpacked(raw) if packed else raw).decode("utf-8")


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(data, TEXT_CAP + 1)
    if len(text) > TEXT_CAP:
        raise ValueError("it is too long")
    return text


def _in_exif(stream: BinaryIO, kind: str) -> Texts:
    image = Image.open(stream, formats=[kind])
    exif, texts = image.getexif(), dict[str, str]()
    comment = exif.get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    if isinstance(comment, bytes) and len(comment) <= TEXT_CAP:
        texts["parameters"] = _comment(comment)
    description = exif.get(_IMAGE_DESCRIPTION)
    if isinstance(description, str) and description.startswith("{"):
        texts["sdcli"] = description
    return Texts(kind, image.width, image.height, texts)


def _comment(data: bytes) -> str:
    """EXIF 2.3, 4.6.5: eight bytes name the encoding. Writers disagree about the order of bytes."""
    mark, raw = data[:8], data[8:]
    if mark != b"UNICODE\0":
        return raw.decode("utf-8", "replace").strip("\0")
    little = raw[1::2].count(0) > raw[::2].count(0)
    return raw.decode("utf-16-le" if little else "utf-16-be", "replace")
