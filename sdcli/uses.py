"""How weights are used: what a dry run saw of each, and the rows of the table of weights. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

MapShape = tuple[int, int, int]
"""Samples, height and width of a map."""

Use = Literal["table", "vector", "matrix", "copied", "sliced"]
"""What a weight is used for: rows are looked up, it is small, it is multiplied by, its stage makes copies of it, or it
is multiplied by a slice at a time, as it lies or cast."""


@dataclass(frozen=True, slots=True)
class WeightUse:
    """A weight as a dry run saw it used: `sees` are height and width of the map, or one and the tokens, that its layer
    gets at a time; `places` are all that a sample has of them, 0 where it was not seen."""

    part: str
    name: str
    shape: tuple[int, ...]
    use: Use
    sees: tuple[int, int]
    places: int

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class WeightRow:
    """A row of the table of weights, which the host makes and the worker obeys: laid out for what its layer `sees`,
    and whether it stays in memory while its stage runs."""

    part: str
    name: str
    shape: tuple[int, ...]
    use: Use
    sees: MapShape
    stays: bool
