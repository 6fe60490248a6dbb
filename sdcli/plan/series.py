"""The footprint over time, thinned as it grows: no stage's peak is lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

POINTS_MOST = 600
"""Of one series."""

FIRST_WIDTH_S = 0.02
"""Of a bucket, as long as all points have room."""


class Point(NamedTuple):
    """One measurement: when, how much, and in which stage."""

    at_s: float
    footprint_bytes: int
    stage: str


class Series:
    """Measurements of a run, of which the largest of each stretch of time and stage is kept.

    Where there are more than `most`, the stretches become twice as long, until there are not.
    """

    def __init__(self, points: Iterable[Point] = (), most: int = POINTS_MOST) -> None:
        self._most = most
        self._width_s = FIRST_WIDTH_S
        self._largest: dict[tuple[int, str], Point] = {}
        self.extend(points)

    def __iter__(self) -> Iterator[Point]:
        """All points in order of time."""
        return iter(sorted(self._largest.values()))

    def __len__(self) -> int:
        return len(self._largest)

    def add(self, at_s: float, footprint_bytes: int, stage: str) -> None:
        """Take one measurement in: a look-up and a comparison, and seldom more."""
        key = int(at_s / self._width_s), stage
        known = self._largest.get(key)
        if known is None or footprint_bytes > known.footprint_bytes:
            self._largest[key] = Point(at_s, footprint_bytes, stage)
            if len(self._largest) > self._most:
                self._thin()

    def extend(self, points: Iterable[Point]) -> None:
        """Take in those of another series."""
        for point in points:
            self.add(*point)

    def _thin(self) -> None:
        stages = len({stage for _, stage in self._largest})
        while len(self._largest) > max(self._most, stages):
            points = list(self._largest.values())
            self._width_s *= 2
            self._largest = {}
            for point in points:
                self.add(*point)
