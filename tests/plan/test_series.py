"""The footprint over time: few points, and every stage's peak among them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from sdcli.plan.series import Point, Series


@pytest.mark.parametrize("seconds", [3, 60, 3600])
def test_a_series_stays_short_and_keeps_the_peak_of_every_stage(seconds: int) -> None:
    rng, series = random.Random(seconds), Series()
    peaks: dict[str, int] = {}
    for look in range(looks := min(seconds * 100, 50_000)):
        stage = ("start", "encode_prompt", "denoise", "decode")[4 * look // looks]
        footprint_bytes = rng.randrange(2**30)
        peaks[stage] = max(peaks.get(stage, 0), footprint_bytes)
        series.add(1e6 + seconds * look / looks, footprint_bytes, stage)
    points = list(series)
    assert 100 < len(points) == len(series) <= 600
    assert points == sorted(points)
    for stage, peak_bytes in peaks.items():
        assert max(point.footprint_bytes for point in points if point.stage == stage) == peak_bytes
    gaps = [after.at_s - before.at_s for before, after in pairwise(points)]
    assert max(gaps) < seconds / 30, "and covers all of the time"


def test_a_stage_of_one_look_among_thousands_is_there() -> None:
    series = Series((Point(look / 100, 500, "denoise") for look in range(9_999)), most=50)
    series.add(42.001, 7, "decode")
    assert len(series) <= 50
    assert Point(42.001, 7, "decode") in list(series)


def test_series_of_several_workers_become_one() -> None:
    one, two = Series([Point(1.0, 5, "start")]), Series([Point(0.5, 3, "start"), Point(2.0, 9, "decode")])
    one.extend(two)
    assert [point.at_s for point in one] == [0.5, 1.0, 2.0]


def test_more_stages_than_points_end_the_thinning() -> None:
    series = Series((Point(float(at), at, f"stage {at}") for at in range(9)), most=4)
    assert len(series) == 9
