"""The remainder: more kernels, more in the heap and giving back more rarely never take less."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from sdcli.plan.counts import WayCount
from sdcli.plan.remainder import (
    ON_CUDA,
    WITH_AVX2,
    WITH_AVX512,
    WITH_AVX512_BF16,
    WITH_AVX512_IN_FP32,
    Curve,
    Remainder,
    along,
)
from sdcli.units import KIB, MIB

EVERY = {
    "avx512": WITH_AVX512,
    "avx512 in bf16": WITH_AVX512_BF16,
    "avx512 in fp32": WITH_AVX512_IN_FP32,
    "avx2": WITH_AVX2,
    "cuda": ON_CUDA,
}
every = pytest.mark.parametrize("remainder", EVERY.values(), ids=EVERY)
HEAP = [*range(0, 64 * MIB, 3 * MIB), *range(64 * MIB, 2048 * MIB, 61 * MIB)]
LARGEST = 30 * MIB
MEASURED = 136 * MIB
"""Most in the heap that all curves have points for."""


def of(heap_bytes: int, kernels: int = 40) -> WayCount:
    return WayCount(heap_bytes, heap_bytes, 1e9, kernels)


def all_of(remainder: Remainder, way: WayCount, largest_bytes: int = LARGEST) -> dict[str, int]:
    """What each stage may take."""
    return {
        "once": remainder.once(way),
        "stage": remainder.steps(way, "stage", largest_bytes),
        "block": remainder.steps(way, "block", largest_bytes),
        "piece": remainder.steps(way, "piece", largest_bytes),
        "pictures": remainder.pictures(way, way, False),
        "pictures, fresh": remainder.pictures(way, way, True),
    }


@every
def test_more_in_the_heap_never_takes_less(remainder: Remainder) -> None:
    for smaller, larger in pairwise(all_of(remainder, of(heap)) for heap in HEAP):
        assert {name for name in smaller if smaller[name] > larger[name]} == set()
        assert all(value > 0 for value in smaller.values())


@every
def test_every_kernel_takes_the_same_and_a_larger_weight_some(remainder: Remainder) -> None:
    few, many = (all_of(remainder, of(40 * MIB, kernels)) for kernels in (10, 60))
    for name in few:
        assert many[name] - few[name] == pytest.approx(50 * remainder.kernel_bytes, abs=1)
    small, large = (all_of(remainder, of(40 * MIB), largest) for largest in (LARGEST, 2 * LARGEST))
    more = {name: large[name] - small[name] for name in small}
    assert (
        more.pop("stage")
        == more.pop("block")
        == more.pop("piece")
        == pytest.approx(remainder.scratch_share * LARGEST, abs=2)
    )
    assert set(more.values()) == {0}


@every
def test_memory_that_goes_back_sooner_leaves_fewer_gaps(remainder: Remainder) -> None:
    for heap in (heap for heap in HEAP if heap < MEASURED):
        takes = all_of(remainder, of(heap))
        assert takes["piece"] <= takes["block"] <= takes["stage"]
        assert takes["once"] == takes["pictures, fresh"]
        assert takes["pictures, fresh"] <= takes["pictures"] or heap < 12 * MIB, "what any worker begins with aside"


@every
def test_what_is_alive_outside_of_the_heap_leaves_gaps_where_one_allocator_has_it_all(remainder: Remainder) -> None:
    much = all_of(remainder, replace(of(20 * MIB), live_bytes=10**10))
    assert (much == all_of(remainder, of(20 * MIB))) == (remainder is not ON_CUDA)
    assert remainder is not ON_CUDA or much == all_of(remainder, of(10**10))


@every
@pytest.mark.parametrize("times", [0.75, 1.0, 1.5])
def test_a_grown_remainder_is_so_many_times_as_large_in_everything(remainder: Remainder, times: float) -> None:
    before = all_of(remainder, of(40 * MIB))
    after, twice = (all_of(grown, of(40 * MIB)) for grown in (remainder.grown(times), remainder.grown(2).grown(times)))
    for name, value in before.items():
        assert after[name] == pytest.approx(times * value, abs=2)
        assert twice[name] == pytest.approx(2 * times * value, abs=2), "it may be grown again"
    assert remainder.grown(1.0) == remainder and remainder.times == 1.0


def test_a_curve_is_straight_between_its_points_and_goes_on_beyond_the_last() -> None:
    curve: Curve = ((0, 10), (100, 30), (200, 80))
    for size, expected in ((0, 10), (50, 20), (100, 30), (150, 55), (200, 80), (400, 180)):
        assert along(curve, size * MIB) == expected * MIB
    assert along(curve, 100 * MIB + 512 * KIB) == 30 * MIB + 256 * KIB
