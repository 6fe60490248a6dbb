"""What the next step comes to is told where steps grow, and only where they do."""

from __future__ import annotations

import pytest

from sdcli.app.growth import Growth
from sdcli.units import MIB


@pytest.mark.parametrize(
    ("peaks", "told"),
    [
        ([500], [None]),
        ([500, 550, 600, 650], [None, None, 650, 700]),
        ([500, 550, 553, 603, 663], [None, None, None, None, 723]),
        ([500, 600, 500, 600, 500], [None] * 5),
        ([500] * 6, [None] * 6),
        ([100, 200, 300], [None, None, None]),
    ],
    ids=["one", "a leak", "a rest between", "up and down", "steady", "within what was predicted"],
)
def test_two_steps_in_turn_that_grew_past_what_was_predicted(peaks: list[int], told: list[int | None]) -> None:
    growth = Growth()
    found = [growth.forecast(peak * MIB, 400 * MIB) for peak in peaks]
    assert found == [None if one is None else one * MIB for one in told]
