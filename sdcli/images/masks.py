"""Masks: which pixels of an init image change, and how what is drawn is laid over it afterwards.

Outside the mask, and its blur, a finished picture has the init image's own pixels, bit for bit. White changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageFilter

from sdcli.errors import BadRequest, echo

Area = Literal["whole", "masked"]

PADDING = 32
"""Pixels around a mask that are drawn with it, for the model to see what it goes on from."""

THRESHOLD = 128
"""From this grey on a mask is white."""

SAME_SHAPE = 0.02
"""By so much of itself the ratio of a mask's sides may differ from that of its picture: it was rounded."""

Box = tuple[int, int, int, int]
"""Left, top, right and bottom, the last two not in it."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """The picture that the drawn part is laid over: RGB `pixels`, and the `share` of what is drawn in each, 0 to 255.

    What is drawn is scaled to the `box` in it.
    """

    width: int
    height: int
    pixels: bytes
    share: bytes
    box: Box
    padding: int | None = None
    """Around the mask, where the box is not all of the picture."""

    def with_drawn(self, pixels: bytes, width: int, height: int) -> bytes:
        """All of the picture, RGB, with what was drawn in its place."""
        picture = Image.frombytes("RGB", (self.width, self.height), self.pixels)
        drawn = Image.frombytes("RGB", (width, height), pixels)
        left, top, right, bottom = self.box
        if drawn.size != (right - left, bottom - top):
            drawn = drawn.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        share = Image.frombytes("L", picture.size, self.share).crop(self.box)
        picture.paste(drawn, (left, top), share)
        return picture.tobytes()


def black_and_white(mask: Image.Image, invert: bool) -> Image.Image:
    """Of any grey the nearer."""
    white, black = (0, 255) if invert else (255, 0)
    return mask.point([black] * THRESHOLD + [white] * (256 - THRESHOLD), "L")


def of_size(mask: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    """The mask in the size of its picture. Raises BadRequest where it has another shape."""
    if mask.size == size:
        return mask
    if abs(mask.width * size[1] / (mask.height * size[0]) - 1) > SAME_SHAPE:
        raise BadRequest(
            f"the mask {echo(name)} has {mask.width}x{mask.height} pixels and the init image {size[0]}x{size[1]}:"
            " give one of the same shape"
        )
    return mask.resize(size, Image.Resampling.NEAREST)


def require_some(mask: Image.Image, name: str | None) -> None:
    """Raise BadRequest for a mask that lets nothing change: of a file of that name, None for a picture's own."""
    if mask.getbbox() is not None:
        return
    if name is None:
        raise BadRequest("nothing of the init image is transparent: give a --mask of its own, or --invert-mask")
    raise BadRequest(f"the mask {echo(name)} has nothing white: what is white changes; see --invert-mask")


def blurred(mask: Image.Image, radius: int) -> Image.Image:
    """The share of what is drawn: a Gaussian blur of so many pixels, as A1111's; none is the mask itself."""
    return mask.filter(ImageFilter.GaussianBlur(radius)) if radius else mask


def with_margins(mask: Image.Image, margins: Box) -> Image.Image:
    """The mask of a picture that was extended: the margins change."""
    left, top, right, bottom = margins
    wide = Image.new("L", (left + mask.width + right, top + mask.height + bottom), 255)
    wide.paste(mask, (left, top))
    return wide


def box_around(share: Image.Image, size: tuple[int, int]) -> Box:
    """The box around all that changes, with PADDING, widened to the shape of `size` as far as the picture goes."""
    box = share.getbbox() or (0, 0, *share.size)
    sides = [(box[0], box[2], share.width), (box[1], box[3], share.height)]
    padded = [(max(0, begin - PADDING), min(most, end + PADDING), most) for begin, end, most in sides]
    lengths = [end - begin for begin, end, _ in padded]
    shape = size[0] / size[1]
    wanted = (max(lengths[0], round(lengths[1] * shape)), max(lengths[1], round(lengths[0] / shape)))
    (left, right), (top, bottom) = (_widened(*side, want) for side, want in zip(padded, wanted, strict=True))
    return left, top, right, bottom


def _widened(begin: int, end: int, most: int, wanted: int) -> tuple[int, int]:
    wanted = min(most, max(wanted, end - begin))
    begin = max(0, min(begin - (wanted - (end - begin)) // 2, most - wanted))
    return begin, begin + wanted
