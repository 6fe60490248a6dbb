"""An init image: from a file that nobody vouches for to plain RGB of the size that will be drawn.

Refuses to know what the picture is for, any format beyond PNG, JPEG and WebP, and the network. Colours become sRGB's by
the picture's own ICC profile; without one they are taken as such, and CMYK by the plain formula. Of an animation the
first frame is read.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.images.chunks import Damaged, PngEssence
from sdcli.images.fit import SHARP, SIDE_MULTIPLE, SMOOTH, Fit, extended, fitted, resized_size
from sdcli.images.flatten import BACKGROUND, BLACK, Colour, alpha_of, colours_of, to_rgb
from sdcli.images.masks import (
    PADDING,
    Area,
    Box,
    Canvas,
    black_and_white,
    blurred,
    box_around,
    of_size,
    require_some,
    with_margins,
)
from sdcli.images.profile import PLAIN, PROFILE_CAP, profile_of
from sdcli.sniff import HEAD_BYTES, detect
from sdcli.units import MIB

FORMATS = ("PNG", "JPEG", "WEBP")
SUPPORTED = "PNG, JPEG and WebP are supported"

PIXEL_CAP = 16_000_000
"""Pixels of an init image at most: decoding 16 megapixels takes 61 MiB, before any conversion."""

BYTE_CAP = 256 * MIB
"""Bytes of its file at most: more than 16 megapixels take in any of the formats, uncompressed."""

CANVAS_CAP = 4096 * 1024
"""Pixels of a picture that a drawn part is put back into: all of it is in memory as long as the run goes on."""

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


@dataclass(frozen=True, slots=True)
class Edit:
    """How an init image is brought to its size, and what of it changes: `mask` is a file, or `alpha` for its own
    transparency; None is all of it. `blur` is in pixels. `outpaint` are margins to draw: left, top, right, bottom."""

    fit: Fit = "crop"
    mask: str | None = None
    blur: int = 0
    invert: bool = False
    area: Area = "whole"
    outpaint: Box = (0, 0, 0, 0)
    background: Colour = BACKGROUND
    """What transparency is laid on."""

    @property
    def masks(self) -> bool:
        """Whether something stays as it is."""
        return self.mask is not None or any(self.outpaint)


ALL_OF_IT = Edit()

ALPHA = "alpha"
"""The mask that an init image brings itself."""


@dataclass(frozen=True, slots=True)
class InitImage:
    """An RGB picture: `pixels` holds height x width x 3 bytes, row by row. It is the first of its file's `frames`.

    With a `mask`, height x width bytes, of which 255 changes and 0 does not, what is drawn is laid over the `canvas`.
    """

    width: int
    height: int
    pixels: bytes
    frames: int = 1
    mask: bytes = b""
    canvas: Canvas | None = None
    edit: Edit = ALL_OF_IT
    notes: tuple[str, ...] = ()
    """What was passed over in it."""


def read_init(
    path: Path, width: int | None, height: int | None, edit: Edit = ALL_OF_IT, multiple: int = SIDE_MULTIPLE
) -> InitImage:
    """The picture in `path`, upright, in sRGB, without transparency, sized by `resized_size`.

    Where the aspect ratio differs, it is brought to the size as `edit` says. Margins come to the size besides. Where
    the masked area alone is drawn, that has the size, and the canvas that of the file.

    Raises BadRequest for what is not a regular file, SdcliError for a file that cannot be read or decoded,
    is empty, is of another type, or has more than 16 megapixels (known from its header, before decoding).
    """
    frames, image, alpha, notes = _read(path, edit.mask == ALPHA, edit.background)
    said = [*notes]
    return replace(_edited(path, image, alpha, frames, (width, height), edit, multiple, said), notes=tuple(said))


def _edited(
    path: Path,
    image: Image.Image,
    alpha: Image.Image | None,
    frames: int,
    asked: tuple[int | None, int | None],
    edit: Edit,
    multiple: int,
    notes: list[str],
) -> InitImage:
    """The picture as `read_init` has it, and `notes` of its mask."""
    width, height = asked
    with _refusals(path):
        if not edit.masks:
            size = _target(path, image.size, width, height, multiple)
            return InitImage(*size, fitted(image, size, edit.fit).tobytes(), frames, edit=edit)
        mask = _mask(path, edit, image.size, alpha, notes)
        if edit.area == "masked":
            return _around_mask(path, image, mask, edit, (width, height), frames)
        size = _target(path, image.size, width, height, multiple)
        image, mask = fitted(image, size, edit.fit), fitted(mask, size, edit.fit, SHARP)
        image, mask = _outpainted(image, mask, edit, TARGET_CAP)
        require_some(mask, None if edit.mask == ALPHA else edit.mask)
        _require_step(image.size, multiple)
        pixels, share = image.tobytes(), blurred(mask, edit.blur).tobytes()
        canvas = Canvas(*image.size, pixels, share, (0, 0, *image.size))
        return InitImage(*image.size, pixels, frames, mask.tobytes(), canvas, edit)


def _around_mask(
    path: Path, image: Image.Image, mask: Image.Image, edit: Edit, size: tuple[int | None, int | None], frames: int
) -> InitImage:
    """The masked part alone, in the size that is to be drawn."""
    if image.width * image.height > CANVAS_CAP:
        most = f"{CANVAS_CAP / 10**6:.0f} megapixels"
        raise SdcliError(f"{echo(path)} is too large to be put together again, {_by(image.size)}: at most {most}")
    image, mask = _outpainted(image, mask, edit, CANVAS_CAP)
    require_some(mask, None if edit.mask == ALPHA else edit.mask)
    share = blurred(mask, edit.blur)
    own = box_around(share, image.size)
    whole = resized_size((own[2] - own[0], own[3] - own[1]), *size)
    box = box_around(share, whole)
    part = image.crop(box).resize(whole, SMOOTH)
    canvas = Canvas(*image.size, image.tobytes(), share.tobytes(), box, PADDING)
    marks = mask.crop(box).resize(whole, SHARP).tobytes()
    return InitImage(*whole, part.tobytes(), frames, marks, canvas, edit)


def _outpainted(image: Image.Image, mask: Image.Image, edit: Edit, most: int) -> tuple[Image.Image, Image.Image]:
    """With the margins, up to so many pixels."""
    left, top, right, bottom = edit.outpaint
    size = (left + image.width + right, top + image.height + bottom)
    if size == image.size:
        return image, mask
    if size[0] * size[1] > most:
        raise BadRequest(f"--outpaint makes it {_by(size)}, which is too large: give less, or --width and --height")
    return extended(image, edit.outpaint), with_margins(mask, edit.outpaint)


def _mask(path: Path, edit: Edit, size: tuple[int, int], alpha: Image.Image | None, notes: list[str]) -> Image.Image:
    """What is to change of a picture of this size, white: nothing where margins alone are drawn. Adds `notes`."""
    if edit.mask is None:
        return Image.new("L", size, 0)
    if edit.mask == ALPHA:
        if alpha is None:
            raise BadRequest(f"{echo(path)} has no transparency: give the picture with some, or a --mask of its own")
        return black_and_white(alpha, invert=not edit.invert)
    frames, image, _, _ = _read(Path(edit.mask), background=BLACK, with_profile=False)
    if frames > 1:
        notes.append(f"{echo(edit.mask)} has {frames} frames: the first one is the mask")
    return black_and_white(of_size(image.convert("L"), size, edit.mask), edit.invert)


def _target(path: Path, own: tuple[int, int], width: int | None, height: int | None, multiple: int) -> tuple[int, int]:
    size = resized_size(own, width, height, multiple)
    if size[0] * size[1] > TARGET_CAP:
        raise BadRequest(f"{echo(path)} would become {_by(size)}, which is too large: give --width and --height")
    return size


def _require_step(size: tuple[int, int], multiple: int) -> None:
    if any(side % multiple for side in size):
        raise BadRequest(f"--outpaint makes it {_by(size)}: both sides must be multiples of {multiple}")


def _read(
    path: Path, with_alpha: bool = False, background: Colour = BACKGROUND, with_profile: bool = True
) -> tuple[int, Image.Image, Image.Image | None, tuple[str, ...]]:
    """How many frames the file has, the first one as RGB, its transparency, if it has any and it is asked for, and what
    was passed over."""
    _require_file(path)
    with _refusals(path), path.open("rb") as stream:
        frames, image, data = _decoded(path, stream)
        profile, note = profile_of(data, colours_of(image)) if with_profile else (PLAIN, None)
        rgb = to_rgb(image, background, profile)
        notes = () if note is None else (f"{echo(path)}: {note}: passed over, the colours are taken as they are",)
        return frames, rgb, alpha_of(image) if with_alpha else None, notes


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


def _decoded(path: Path, stream: BinaryIO) -> tuple[int, Image.Image, bytes | None]:
    """How many frames there are, the first one, decoded and turned upright, and its colour profile, if it has one."""
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
    profile: bytes | None = image.info.get("icc_profile")
    if essence is not None and essence.profile is not None:
        profile = essence.unpacked_profile(PROFILE_CAP) or b"damaged"
    return frames, image, profile


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
    frames, image, _, notes = _read(path)
    with _refusals(path):
        size = size_of(image.size)
        return InitImage(*size, fitted(image, size, "crop").tobytes(), frames, notes=notes)
