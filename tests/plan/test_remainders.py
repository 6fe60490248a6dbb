"""What runs have shown of the remainder: the most is kept, and nothing absurd is believed."""

from __future__ import annotations

import json

import pytest

from sdcli import settings
from sdcli.plan.remainder import UNMEASURED_TIMES, WITH_AVX2
from sdcli.plan.remainders import (
    BELIEVED,
    LARGER,
    LEAST,
    MOST,
    SAFE,
    WORDS,
    Seen,
    corrected,
    remember_remainder,
    remembered_remainder,
)

KEY = "cpu fp32 torch 9.9"


def test_the_most_that_was_seen_is_remembered_for_each_device_type_and_torch() -> None:
    assert remembered_remainder(KEY) is None
    for seen in (Seen(0.9, 100.0), Seen(1.2, 50.0), Seen(0.5, 70.0)):
        remember_remainder(KEY, seen)
    assert remembered_remainder(KEY) == Seen(1.2, 100.0)
    assert remembered_remainder("cpu bf16 torch 9.9") is None


@pytest.mark.parametrize(
    "told",
    [
        None, [], "a", 1.0, {}, {"times": 1.0}, {"times": "1", "heap_bytes": 1}, {"times": True, "heap_bytes": 1},
        {"times": BELIEVED["times"][1] + 1, "heap_bytes": 1}, {"times": -1, "heap_bytes": 1},
        {"times": 1, "heap_bytes": -1}, {"times": 1, "heap_bytes": 1e300}, {"times": None, "heap_bytes": 1},
    ],
)  # fmt: skip
def test_a_file_that_says_something_absurd_is_not_believed(told: object) -> None:
    remember_remainder(KEY, Seen(1.0, 1.0))
    (file,) = settings.cache_dir().rglob("remainders.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), KEY: told}))
    assert remembered_remainder(KEY) is None


@pytest.mark.parametrize(
    ("seen", "times", "source"),
    [
        (None, 1.0, "shipped"),
        (Seen(0.5, 100), 1.0, "shipped"),
        (Seen(1.0, 100), 1.0, "shipped"),
        (Seen(1.1, 100), 1.1, "learned"),
        (Seen(3.0, 100), SAFE, "learned"),
    ],
)
def test_a_measured_processor_s_remainder_only_ever_grows_and_not_by_much(
    seen: Seen | None, times: float, source: str
) -> None:
    for heap_bytes in (1, 1000):
        remainder, came_from = corrected(WITH_AVX2, True, seen, heap_bytes)
        assert (remainder.times, came_from) == (pytest.approx(times), source) and came_from in WORDS


@pytest.mark.parametrize(
    ("seen", "heap_bytes", "times", "source"),
    [
        (None, 1, UNMEASURED_TIMES, "wide"),
        (Seen(0.1, 100), 100, LEAST, "learned"),
        (Seen(0.8, 100), int(LARGER * 100), 0.8 * SAFE, "learned"),
        (Seen(1.5, 100), 100, 1.5 * SAFE, "learned"),
        (Seen(3.9, 100), 100, MOST, "learned"),
        (Seen(0.8, 100), int(LARGER * 100) + 1, UNMEASURED_TIMES, "wide"),
        (Seen(1.9, 100), int(LARGER * 100) + 1, 1.9, "wide"),
    ],
)
def test_another_processor_s_is_wide_until_a_run_of_about_that_size_has_shown_it(
    seen: Seen | None, heap_bytes: int, times: float, source: str
) -> None:
    remainder, came_from = corrected(WITH_AVX2, False, seen, heap_bytes)
    assert (remainder.times, came_from) == (pytest.approx(times), source) and came_from in WORDS
