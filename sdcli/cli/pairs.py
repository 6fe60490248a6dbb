"""Types of options that are two whole numbers: of pixels of some picture, which are multiples of nothing."""

from __future__ import annotations

import re
from typing import Any

import click

from sdcli.errors import echo

PIXELS_MOST = 32768
"""Of a side of a picture that a model is told of."""


class Pair(click.ParamType):
    """Two numbers with a mark between them."""

    def __init__(self, name: str, mark: str, least: int, otherwise: str) -> None:
        self.name, self._mark, self._least, self._otherwise = name, mark, least, otherwise

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(rf"([0-9]{{1,5}}){self._mark}([0-9]{{1,5}})", str(value).replace(" ", "").lower())
        numbers = (int(found[1]), int(found[2])) if found else (-1, -1)
        if not all(self._least <= number <= PIXELS_MOST for number in numbers):
            self.fail(f"{echo(value)} is {self._otherwise}", param, ctx)
        return numbers


PIXEL_SIZE = Pair("WxH", "x", 1, "not a size: give width and height, as in 640x480")
CORNER = Pair("X,Y", ",", 0, "no corner: give pixels from the left and from above, as in 0,64")
