"""A small picture for a terminal, by the protocols that terminals know, and as a file.

Kitty's graphics protocol (https://sw.kovidgoyal.net/kitty/graphics-protocol/), iTerm2's inline images
(https://iterm2.com/documentation-images.html), Sixel (https://vt100.net/docs/vt3xx-gp/chapter14.html), or half blocks.
All but the last give a picture without moving the cursor's line: who prints it makes room first.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from itertools import groupby
from typing import Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

Size = tuple[int, int]
Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]

SOFTWARE = "sdcli preview"
"""What a file of ours says of itself."""

CELL = (10, 20)
"""Pixels of a terminal's cell, where it is not known."""

_CHUNK = 4096
_COLOURS = 64


def picture_of(width: int, height: int, pixels: bytes) -> Image.Image:
    """From RGB, row by row."""
    return Image.frombytes("RGB", (width, height), pixels)


def png_of(picture: Image.Image) -> bytes:
    """A file that says that it is a preview."""
    info, data = PngInfo(), io.BytesIO()
    info.add_text("Software", SOFTWARE)
    picture.save(data, "PNG", pnginfo=info)
    return data.getvalue()


def is_preview(head: bytes) -> bool:
    """Whether a file that begins so is one of these."""
    return head.startswith(b"\x89PNG") and f"Software\0{SOFTWARE}".encode() in head


def lines_of(picture: Image.Image, protocol: Protocol, cells: Size, number: int, true_colour: bool) -> list[str]:
    """As many lines as the picture has rows of cells, the first of which draws all of it where the terminal can."""
    if protocol == "blocks":
        return half_blocks(picture, cells, true_colour)
    if protocol == "kitty":
        drawn = kitty(picture, cells, number)
    else:
        drawn = iterm2(picture, cells) if protocol == "iterm2" else sixel(picture, cells)
    rows = cells[1]
    room = "\n" * (rows - 1) + (f"\x1b[{rows - 1}A" if rows > 1 else "")  # made before the cursor's place is kept
    return [f"{room}\r\x1b7{drawn}\x1b8", *[""] * (rows - 1)]


def kitty(picture: Image.Image, cells: Size, number: int) -> str:
    """In so many cells, in the place of what had this number before; no answer is asked for."""
    data = base64.standard_b64encode(png_of(picture)).decode()
    chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]
    head = f"a=T,f=100,q=2,C=1,i={number},p=1,c={cells[0]},r={cells[1]},"
    parts = (
        f"\x1b_G{head if at == 0 else ''}m={int(at < len(chunks) - 1)};{chunk}\x1b\\" for at, chunk in enumerate(chunks)
    )
    return "".join(parts)


def iterm2(picture: Image.Image, cells: Size) -> str:
    """In so many cells."""
    data = png_of(picture)
    shown = f"size={len(data)};width={cells[0]};height={cells[1]};preserveAspectRatio=1;inline=1"
    return f"\x1b]1337;File={shown}:{base64.standard_b64encode(data).decode()}\x07"


def sixel(picture: Image.Image, cells: Size) -> str:
    """About so many cells large, in 64 colours."""
    size = cells[0] * CELL[0], cells[1] * CELL[1]
    painted = picture.resize(size, Image.Resampling.BILINEAR).quantize(_COLOURS, dither=Image.Dither.NONE)
    palette, numbers = painted.getpalette() or [], painted.tobytes()
    used = sorted(set(numbers))
    colours = "".join(
        f"#{one};2;" + ";".join(str(round(level / 2.55)) for level in palette[3 * one : 3 * one + 3]) for one in used
    )
    width, height = size
    bands = (_band(numbers, width, top, min(6, height - top)) for top in range(0, height, 6))
    return f'\x1bP0;1q"1;1;{width};{height}{colours}{"-".join(bands)}\x1b\\'


def _band(numbers: bytes, width: int, top: int, rows: int) -> str:
    """Six rows: a line for each of their colours, each character a column, repeated ones counted."""
    lines = [numbers[(top + row) * width : (top + row + 1) * width] for row in range(rows)]

    def line(colour: int) -> Iterator[str]:
        columns = (sum((one == colour) << row for row, one in enumerate(column)) for column in zip(*lines, strict=True))
        for bits, run in groupby(columns):
            count = sum(1 for _ in run)
            yield f"!{count}{chr(63 + bits)}" if count > 3 else chr(63 + bits) * count

    return "$".join(f"#{colour}{''.join(line(colour))}" for colour in sorted(set().union(*lines)))


def half_blocks(picture: Image.Image, cells: Size, true_colour: bool) -> list[str]:
    """A line for each row of cells: a cell has two pixels, one above the other."""
    width, height = cells
    small = picture.resize((width, 2 * height), Image.Resampling.BOX).tobytes()
    pixel = [small[at : at + 3] for at in range(0, len(small), 3)]
    lines = []
    for row in range(height):
        upper, lower = (pixel[(2 * row + half) * width : (2 * row + half + 1) * width] for half in (0, 1))
        shown = (
            f"\x1b[38;{_colour(above, true_colour)};48;{_colour(below, true_colour)}m\u2580"
            for above, below in zip(upper, lower, strict=True)
        )
        lines.append("".join(shown) + "\x1b[0m")
    return lines


def _colour(rgb: bytes, true_colour: bool) -> str:
    """As it is, or the nearest of a cube of 6 x 6 x 6."""
    if true_colour:
        return "2;" + ";".join(map(str, rgb))
    red, green, blue = (round(level / 51) for level in rgb)
    return f"5;{16 + 36 * red + 6 * green + blue}"
