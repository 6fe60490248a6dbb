"""Whether steps take more and more memory, and what the next one would come to: told before it crosses the ceiling."""

from __future__ import annotations

GROWS_BYTES = 8 * 2**20
"""From one step to the next; what a heap's gaps add is less."""


class Growth:
    """The highest footprints of an attempt's steps."""

    def __init__(self) -> None:
        self._peaks: list[int] = []

    def forecast(self, peak_bytes: int, predicted_bytes: int) -> int | None:
        """What the next step comes to if it adds what this one has added; None unless two steps in turn have added
        something, and it is more by now than was predicted for all of them."""
        self._peaks = [*self._peaks[-2:], peak_bytes]
        steps = [after - before for before, after in zip(self._peaks, self._peaks[1:], strict=False)]
        if len(steps) < 2 or min(steps) < GROWS_BYTES or peak_bytes <= predicted_bytes:
            return None
        return peak_bytes + steps[-1]
