"""Planes on planes with no stored map between them: a level of an autoencoder that is computed anew in every pass.

A pass goes from the first row to the last. Each plane that two ask, or that is asked for rows around those of the band,
remembers the end of what it computed, so that a pass computes no row twice.
"""

from __future__ import annotations

import torch

from sdcli.blocks.planes import Halved, Plane, Stored


class Remembered:
    """A plane that keeps the last rows that it computed, and computes of what it is asked for only the rows after."""

    def __init__(self, source: Plane) -> None:
        self._source = source
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self.row_bytes = source.row_bytes
        self._begin = self._end = 0
        self._last = torch.empty(0)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """A view of rows that are kept until others are asked for."""
        if begin < self._begin or end > self._end:
            self._go_on(begin, end)
        return self._last[:, :, begin - self._begin : end - self._begin]

    def _go_on(self, begin: int, end: int) -> None:
        """Keep these rows in place of the last ones. What is not needed goes before new rows come."""
        known = self._end - begin if self._begin <= begin < self._end < end else 0
        kept = self._last[:, :, begin - self._begin :].clone(memory_format=torch.preserve_format) if known else None
        self._last = torch.empty(0)
        some = self._source.rows(begin + known, end)
        self._last = some if kept is None else torch.cat([kept, some], dim=2)
        self._begin, self._end = begin, end


class Rounded:
    """A plane that is never stored, with the numbers that it would have if it were."""

    def __init__(self, source: Plane, kind: type[Stored], dtype: torch.dtype) -> None:
        self._source, self._kind = source, kind
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self.row_bytes = max(source.row_bytes, self.channels * self.width * dtype.itemsize)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """As they come out of a stored map."""
        some = self._source.rows(begin, end)
        return Halved.rounded(some) if self._kind is Halved else some
