"""Small pictures as terminals take them: each is read back as that terminal would."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from sdcli.images.preview import CELL, half_blocks, is_preview, iterm2, kitty, lines_of, picture_of, png_of, sixel

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
PICTURE = picture_of(8, 6, PIXELS.tobytes())
LARGE = Image.effect_noise((200, 150), 90).convert("RGB")


def same(data: bytes, picture: Image.Image) -> bool:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes() == picture.tobytes()


def test_a_file_says_that_it_is_a_preview() -> None:
    other = io.BytesIO()
    PICTURE.save(other, "PNG")
    assert same(png_of(PICTURE), PICTURE)
    assert is_preview(png_of(PICTURE)[:256]) and not is_preview(other.getvalue()[:256]) and not is_preview(b"")


@pytest.mark.parametrize("picture", [PICTURE, LARGE], ids=["small", "large"])
def test_kitty_gets_the_very_picture_in_pieces_that_it_takes(picture: Image.Image) -> None:
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(picture, (20, 10), 7))
    assert "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in pieces) == kitty(picture, (20, 10), 7)
    assert all(len(data) <= 4096 for _, data in pieces)
    assert [keys[-1] for keys, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    assert pieces[0][0].startswith("a=T,f=100,q=2,C=1,i=7,p=1,c=20,r=10,m=")
    assert same(base64.standard_b64decode("".join(data for _, data in pieces)), picture)


def test_iterm2_gets_the_very_picture() -> None:
    found = re.fullmatch(
        r"\x1b\]1337;File=size=(\d+);width=20;height=10;preserveAspectRatio=1;inline=1:(.*)\x07",
        iterm2(PICTURE, (20, 10)),
    )
    assert found is not None
    data = base64.standard_b64decode(found[2])
    assert len(data) == int(found[1]) and same(data, PICTURE)


def shown_by_sixel(text: str) -> np.ndarray:
    """What a terminal of the kind draws."""
    found = re.fullmatch(r'\x1bP0;1q"1;1;(\d+);(\d+)(.*)\x1b\\', text)
    assert found is not None
    canvas, palette = np.full((int(found[2]), int(found[1]), 3), -1), dict[int, list[float]]()
    x = y = colour = 0
    for define, chosen, count, bits, mark in re.findall(
        r"#(\d+;2;\d+;\d+;\d+)|#(\d+)|!(\d+)(?=(.))|([?-~$\-])", found[3]
    ):
        if define:
            number, _, *levels = map(int, define.split(";"))
            palette[number] = [level * 2.55 for level in levels]
        elif chosen:
            colour = int(chosen)
        elif count:
            for _ in range(int(count) - 1):
                x = paint(canvas, palette[colour], x, y, bits)
        elif mark == "$":
            x = 0
        elif mark == "-":
            x, y = 0, y + 6
        else:
            x = paint(canvas, palette[colour], x, y, mark)
    return canvas


def paint(canvas: np.ndarray, colour: list[float], x: int, y: int, character: str) -> int:
    for row in range(6):
        if (ord(character) - 63) >> row & 1:
            canvas[y + row, x] = colour
    return x + 1


@pytest.mark.parametrize("cells", [(3, 2), (7, 1)])
def test_a_terminal_with_sixel_draws_all_of_it_in_about_its_colours(cells: tuple[int, int]) -> None:
    drawn = shown_by_sixel(sixel(PICTURE, cells))
    size = cells[0] * CELL[0], cells[1] * CELL[1]
    assert drawn.shape == (size[1], size[0], 3) and drawn.min() >= 0
    wanted = np.asarray(PICTURE.resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(drawn - wanted).mean() < 20


def test_half_blocks_have_two_pixels_a_cell() -> None:
    lines = half_blocks(PICTURE, (8, 3), true_colour=True)
    found = [re.findall(r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀", line) for line in lines]
    above, below = (np.array([[cell[at : at + 3] for cell in row] for row in found], int) for at in (0, 3))
    assert (above == PIXELS[::2]).all() and (below == PIXELS[1::2]).all()
    assert all(line.endswith("\x1b[0m") for line in lines)


def test_without_true_colour_the_nearest_of_the_cube_is_taken() -> None:
    (line,) = half_blocks(Image.new("RGB", (1, 2), (255, 0, 51)), (1, 1), true_colour=False)
    assert line == "\x1b[38;5;197;48;5;197m▀\x1b[0m"


@pytest.mark.parametrize("protocol", ["kitty", "iterm2", "sixel", "blocks"])
def test_there_are_as_many_lines_as_rows_and_the_cursor_comes_back(protocol: str) -> None:
    lines = lines_of(PICTURE, protocol, (8, 4), 1, True)  # type: ignore[arg-type]
    assert len(lines) == 4
    if protocol != "blocks":
        assert lines[0].startswith("\n\n\n\x1b[3A\r\x1b7") and lines[0].endswith("\x1b8") and lines[1:] == [""] * 3
