"""What of a PNG file says how it looks: its pixels, colours, transparency and orientation, and nothing else.

Refuses to decode anything. Texts are never read: they may be larger than the picture, or grow a thousandfold when they
are unpacked, as a colour profile may, which is unpacked up to a cap. Checksums are compared, which Pillow does not do
for pixels.
"""

from __future__ import annotations

import os
import zlib
from typing import BinaryIO

_BLOCK_BYTES = 64 * 1024
_SIGNATURE_BYTES = 8
_KEPT = (b"tRNS", b"eXIf")
"""Beside the critical ones, whose names begin with a capital letter."""

_TEXTS = {b"iTXt": b"XML:com.adobe.xmp\0\0", b"tEXt": b"Raw profile type exif\0", b"zTXt": b"Raw profile type exif\0"}
"""Texts that may hold the orientation; the first one's second zero says that it is not compressed."""

_TEXT_CAP = 2**20
_CHUNK_CAP, _SPAN_CAP = 2**18, 2**10
"""What is kept lies together in any real file. More chunks than that would take minutes to walk through."""


class Damaged(Exception):
    """The file is not what its own checksums and lengths say; the message says what."""


class PngEssence:
    """The chunks of a PNG file that say how it looks, read as if they were the whole file.

    `frames` counts those of an animation, 1 without one; `profile` says where its colour profile is, if it has one:
    from and to. Raises Damaged.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._at, self.frames = stream, 0, 1
        self.profile: tuple[int, int] | None = None
        self._spans = [(0, _SIGNATURE_BYTES)]  # offsets in the file, from and to; they follow each other
        controls, start = 0, _SIGNATURE_BYTES
        for _ in range(_CHUNK_CAP):
            stream.seek(start)
            head = stream.read(8)
            if len(head) < 8:
                raise Damaged("a damaged PNG: it ends too early")
            name, end = head[4:], start + 8 + int.from_bytes(head[:4]) + 4
            controls += name == b"fcTL"
            if name == b"iCCP" and self.profile is None:
                self.profile = start + 8, end - 4
            if _is_kept(name, end - start - 12, stream):
                _check(stream, start, end)
                self._keep(start, end)
            if name == b"IEND" or len(self._spans) > _SPAN_CAP:
                break
            start = end
        if name != b"IEND":
            raise Damaged("a damaged PNG: it has too many pieces")
        self.frames = max(1, controls)

    def unpacked_profile(self, most_bytes: int) -> bytes | None:
        """The colour profile (PNG specification, 11.3.3.3), a byte more than `most_bytes` of a larger one; empty of one
        that cannot be unpacked, None where there is none."""
        if self.profile is None:
            return None
        begin, end = self.profile
        self._stream.seek(begin)
        _, _, packed = self._stream.read(min(end - begin, most_bytes)).partition(b"\0")
        try:
            return zlib.decompressobj().decompress(packed[1:], most_bytes + 1)
        except zlib.error:
            return b""

    def _keep(self, start: int, end: int) -> None:
        if self._spans[-1][1] == start:
            start = self._spans.pop()[0]
        self._spans.append((start, end))

    def read(self, size: int = -1) -> bytes:
        """As of a file, but never more than one span has."""
        begin = 0
        for start, end in self._spans:
            left = begin + end - start - self._at
            if left > 0:
                self._stream.seek(start + self._at - begin)
                data = self._stream.read(left if size < 0 else min(size, left))
                self._at += len(data)
                return data
            begin += end - start
        return b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        whole = sum(end - start for start, end in self._spans)
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: whole}[whence])
        return self._at

    def tell(self) -> int:
        """As of a file."""
        return self._at


def _is_kept(name: bytes, size: int, stream: BinaryIO) -> bool:
    if name in _TEXTS:
        return size <= _TEXT_CAP and stream.read(len(_TEXTS[name])) == _TEXTS[name]
    return name[:1].isupper() or name in _KEPT


def _check(stream: BinaryIO, start: int, end: int) -> None:
    """Compare a chunk's checksum, over its name and data, a block at a time."""
    stream.seek(start + 4)
    name, left, checksum = b"", end - 4 - (start + 4), 0
    while left > 0 and (block := stream.read(min(left, _BLOCK_BYTES))):
        name = name or block[:4]
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    stored = stream.read(4)
    if left or len(stored) < 4:
        raise Damaged("a damaged PNG: it ends too early")
    if int.from_bytes(stored) != checksum:
        raise Damaged(f"a damaged PNG: the checksum of its {name.decode('ascii', 'replace')} chunk is wrong")
