"""Ways to bring a picture to another size: cut, with a margin, out of proportion, or not at all."""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageOps

from sdcli.errors import BadRequest

Fit = Literal["crop", "pad", "stretch", "exact"]
Size = tuple[int, int]

SIDE_MULTIPLE, SIDE_MIN, SIDE_MAX = 8, 64, 1024

SMOOTH, SHARP = Image.Resampling.LANCZOS, Image.Resampling.NEAREST


def fitted(image: Image.Image, size: Size, how: Fit, resampling: Image.Resampling = SMOOTH) -> Image.Image:
    """`image` in `size`: scaled until it covers it, and its centre cut out; until it fits into it, the margins filled
    with its outermost pixels; or stretched. Raises BadRequest for one that is of another size and must not be.
    """
    if how == "crop":
        return ImageOps.fit(image, size, method=resampling)
    if how == "stretch":
        return image.resize(size, resampling)
    if how == "pad":
        inner = ImageOps.contain(image, size, method=resampling)
        left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
        right, bottom = size[0] - inner.width - left, size[1] - inner.height - top
        return extended(inner, (left, top, right, bottom))
    if image.size != size:
        raise BadRequest(
            f"the init image has {image.width}x{image.height} pixels, not {size[0]}x{size[1]}: scale it yourself,"
            " or give another --fit"
        )
    return image


def extended(image: Image.Image, margins: tuple[int, int, int, int]) -> Image.Image:
    """`image` with margins left, above, right and below, in which its outermost pixels go on."""
    left, top, right, bottom = margins
    wide = Image.new(image.mode, (left + image.width + right, image.height))
    for at, width, column in ((0, left, 0), (left + image.width, right, image.width - 1)):
        if width:
            wide.paste(image.crop((column, 0, column + 1, image.height)).resize((width, image.height)), (at, 0))
    wide.paste(image, (left, 0))
    tall = Image.new(image.mode, (wide.width, top + image.height + bottom))
    for at, height, row in ((0, top, 0), (top + image.height, bottom, image.height - 1)):
        if height:
            tall.paste(wide.crop((0, row, wide.width, row + 1)).resize((wide.width, height)), (0, at))
    tall.paste(wide, (0, top))
    return tall


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
