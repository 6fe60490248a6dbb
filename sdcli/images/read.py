"""An init image: from a file that nobody vouches for to plain RGB of the size that will be drawn.

Refuses to know what the picture is for, any format beyond PNG, JPEG and WebP, and the network. The
ICC profile is not applied: colours are taken as sRGB, and CMYK by the plain formula. Of an animation
the first frame is read.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.images.chunks import Damaged, PngEssence
from sdcli.images.flatten import to_rgb
from sdcli.sniff import HEAD_BYTES, detect
from sdcli.units import MIB

FORMATS = ("PNG", "JPEG", "WEBP")
SUPPORTED = "PNG, JPEG and WebP are supported"

PIXEL_CAP = 16_000_000
"""Pixels of an init image at most: decoding 16 megapixels takes 61 MiB, before any conversion."""

BYTE_CAP = 256 * MIB
"""Bytes of its file at most: more than 16 megapixels take in any of the formats, uncompressed."""

TARGET_CAP = 4096 * 4096
"""Pixels that an init image is resized to at most; only a sliver such as 10000x1 asks for more."""

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    Damaged,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What decoders raise on a damaged or hostile file."""

SIDE_MULTIPLE, SIDE_MIN, SIDE_MAX = 8, 64, 1024


@dataclass(frozen=True, slots=True)
class InitImage:
    """An RGB picture: `pixels` holds height x width x 3 bytes, row by row. It is the first of its file's `frames`."""

    width: int
    height: int
    pixels: bytes
    frames: int = 1


def read_init(path: Path, width: int | None, height: int | None, multiple: int = SIDE_MULTIPLE) -> InitImage:
    """The picture in `path`, upright, without transparency (composited on white), sized by `resized_size`.

    Where the aspect ratio differs, the picture is scaled until it covers the size and its centre is cut out.

    Raises BadRequest for what is not a regular file, SdcliError for a file that cannot be read or decoded,
    is empty, is of another type, or has more than 16 megapixels (known from its header, before decoding).
    """
    _require_file(path)
    with _refusals(path), path.open("rb") as stream:
        frames, image = _decoded(path, stream)
        size = resized_size(image.size, width, height, multiple)
        if size[0] * size[1] > TARGET_CAP:
            raise BadRequest(f"{echo(path)} would become {_by(size)}, which is too large: give --width and --height")
        fitted = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
        return InitImage(*size, fitted.tobytes(), frames)


def resized_size(
    own: tuple[int, int], width: int | None, height: int | None, multiple: int = SIDE_MULTIPLE
) -> tuple[int, int]:
    """Width and height in pixels that a picture of size `own` is resized to.

    Both given: these. One given: the other follows the aspect ratio. None given: the picture's own size,
    scaled down in proportion so that the longer side is at most 1024. A side that is not given is rounded
    to the nearest `multiple` (halves up) and is at least 64.
    """
    if width is not None and height is not None:
        return width, height
    if width is not None:
        return width, _rounded(own[1] * width, own[0], multiple)
    if height is not None:
        return _rounded(own[0] * height, own[1], multiple), height
    longer = max(own)
    kept = min(longer, SIDE_MAX)
    return _rounded(own[0] * kept, longer, multiple), _rounded(own[1] * kept, longer, multiple)


def _rounded(dividend: int, divisor: int, multiple: int) -> int:
    step = multiple * divisor
    return max(-(-SIDE_MIN // multiple) * multiple, (2 * dividend + step) // (2 * step) * multiple)


def _require_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # Path has already folded the two slashes of a URL into one.
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
            raise BadRequest(f"{echo(path)} is a URL: download the picture and give its file") from None
        raise BadRequest(f"no such file: {echo(path)}") from None
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise BadRequest(f"{echo(path)} is a folder: give a picture in it")
    # A pipe or a device may block for ever or never end.
    if not stat.S_ISREG(mode):
        raise BadRequest(f"{echo(path)} is not a regular file: save the picture and give its file")


def _decoded(path: Path, stream: BinaryIO) -> tuple[int, Image.Image]:
    """How many frames there are, and the first one, decoded and turned upright, as RGB."""
    head = stream.read(HEAD_BYTES)
    if not head:
        raise SdcliError(f"{echo(path)} is empty: export or download it again")
    kind = detect(head)
    if kind not in FORMATS:
        raise SdcliError(f"{echo(path)} is {f'a file of type {kind}' if kind else 'of no known type'}: {SUPPORTED}")
    if os.fstat(stream.fileno()).st_size > BYTE_CAP:
        raise SdcliError(f"{echo(path)} is larger than {BYTE_CAP // MIB} MiB: scale the picture down")
    stream.seek(0)
    essence = PngEssence(stream) if kind == "PNG" else None
    try:
        image = Image.open(cast("BinaryIO", essence or stream), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise SdcliError(f"{echo(path)} is a damaged {kind}: export or download it again") from error
    if image.width * image.height > PIXEL_CAP:
        raise _too_large(path, _by(image.size))
    # Of JPEG files more pictures are previews and gain maps.
    frames = essence.frames if essence else getattr(image, "n_frames", 1) if kind == "WEBP" else 1
    image.load()
    with suppress(SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, OSError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)  # EXIF that is none turns nothing
    return frames, to_rgb(image)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Whatever goes wrong within becomes one SdcliError about `path`; Pillow's warnings stay unsaid."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except SdcliError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            pixels = re.search(r"\d+ pixels", str(error))
            raise _too_large(path, pixels[0] if pixels else "far more") from error
        except OSError as error:
            # Pillow's own have no errno; those of the system do.
            if error.errno is not None:
                raise SdcliError(f"cannot read {echo(path)}: {error.strerror}") from error
            raise _undecodable(path, error) from error
        except DAMAGE as error:
            raise _undecodable(path, error) from error


def _undecodable(path: Path, error: Exception) -> SdcliError:
    reason = echo(str(error) or type(error).__name__)
    return SdcliError(f"cannot decode {echo(path)}: {reason}: export or download it again")


def _too_large(path: Path, size: str) -> SdcliError:
    cap = f"{PIXEL_CAP // 10**6} megapixels"
    return SdcliError(f"{echo(path)} is too large, {size}: scale it down to {cap} at most")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def read_sized(path: Path, size_of: Callable[[tuple[int, int]], tuple[int, int]]) -> InitImage:
    """The picture in `path` as `read_init` has it, at the size that is made of its own."""
    _require_file(path)
    with _refusals(path), path.open("rb") as stream:
        frames, image = _decoded(path, stream)
        size = size_of(image.size)
        fitted = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
        return InitImage(*size, fitted.tobytes(), frames)
