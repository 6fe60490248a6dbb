"""What runs teach about the machine's speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.domain import Plan, Request
from sdcli.plan.seconds import (
    LOADING_BYTES,
    MOST_BYTES,
    SEQUENTIAL,
    TELLING_FLOPS,
    TYPICAL_SPEED,
    Speed,
    learned,
    loading_seconds,
    picture_seconds,
    recompute_seconds,
    step_flops,
    step_seconds,
    streamed_bytes,
)
from tests.plan.subjects import subject_of
from tests.support import subject

REQUEST = Request("a red fox", "", 4096, 4096, 20, 7.5, 1, 1)
RESIDENT = Plan("resident", 2**40, "batched", 0, ())
STREAMED = replace(RESIDENT, residency="streamed", resident_bytes=0)
COPIED = replace(STREAMED, prepared=True)


MODEL = subject_of(REQUEST, "fp32")


def test_a_step_that_took_twice_as_long_halves_the_distance() -> None:
    predicted = step_seconds(MODEL, RESIDENT, TYPICAL_SPEED)
    slower = learned(TYPICAL_SPEED, MODEL, RESIDENT, 2 * predicted)
    assert slower.flops == pytest.approx(0.75 * TYPICAL_SPEED.flops)
    assert replace(slower, flops=TYPICAL_SPEED.flops) == TYPICAL_SPEED


@pytest.mark.parametrize("plan", [RESIDENT, STREAMED, COPIED], ids=["resident", "streamed", "copied"])
@pytest.mark.parametrize("truth", [Speed(2e11, 1e8, 1e9), Speed(3e12, 5e9, 5e10)], ids=["slow", "fast"])
def test_what_is_predicted_comes_to_what_is_measured(plan: Plan, truth: Speed) -> None:
    speed, took = TYPICAL_SPEED, step_seconds(MODEL, plan, truth)
    for _ in range(30):
        speed = learned(speed, MODEL, plan, took)
    assert step_seconds(MODEL, plan, speed) == pytest.approx(took, rel=0.35)


def test_steps_that_read_for_long_tell_of_the_reading() -> None:
    for plan, name in ((STREAMED, "cast_bytes"), (COPIED, "prepared_bytes")):
        computing = step_seconds(MODEL, RESIDENT, TYPICAL_SPEED)
        now = learned(TYPICAL_SPEED, MODEL, plan, 10 * computing)
        rate = streamed_bytes(MODEL, plan) / (9 * computing)
        assert getattr(now, name) == pytest.approx((getattr(TYPICAL_SPEED, name) + rate) / 2)
        assert replace(now, **{name: getattr(TYPICAL_SPEED, name)}) == TYPICAL_SPEED


def test_saving_memory_in_a_stage_costs_time_once_or_for_each_picture() -> None:
    edit = subject_of(replace(REQUEST, strength=0.5), "fp32")
    many = subject_of(replace(REQUEST, strength=0.5, count=7), "fp32")
    for stage in edit.stages:
        if stage.ways:
            quickest, saving, most = (recompute_seconds(edit, stage, way, TYPICAL_SPEED) for way in stage.ways)
            more = 8e6 * 4096 * 4096 / TYPICAL_SPEED.flops
            assert (quickest, saving, most) == (0.0, pytest.approx(more), pytest.approx(2.5 * more))
            times = 7 if stage.times == "pictures" else 1
            assert recompute_seconds(many, stage, "recomputed", TYPICAL_SPEED) == pytest.approx(times * more)


def test_a_run_from_a_cold_cache_teaches_nothing_of_the_arithmetic_nor_does_the_warm_one_after_it() -> None:
    warm = step_seconds(MODEL, COPIED, TYPICAL_SPEED)
    slowed = learned(TYPICAL_SPEED, MODEL, COPIED, 2 * warm)
    again = learned(slowed, MODEL, COPIED, warm)
    assert slowed.prepared_bytes < again.prepared_bytes < TYPICAL_SPEED.prepared_bytes
    assert slowed.flops == again.flops == TYPICAL_SPEED.flops


def test_a_streamed_step_faster_than_its_arithmetic_tells_of_that() -> None:
    computing = step_seconds(MODEL, RESIDENT, TYPICAL_SPEED)
    now = learned(TYPICAL_SPEED, MODEL, COPIED, computing / 2)
    assert now == replace(TYPICAL_SPEED, flops=pytest.approx(1.5 * TYPICAL_SPEED.flops))
    most = learned(TYPICAL_SPEED, MODEL, COPIED, computing * (1 + 1e-9))
    assert most == replace(TYPICAL_SPEED, prepared_bytes=(TYPICAL_SPEED.prepared_bytes + MOST_BYTES) / 2)


def test_small_steps_and_no_time_say_nothing() -> None:
    small = subject_of(replace(REQUEST, width=64, height=64), "fp32")
    assert step_flops(small) < TELLING_FLOPS < step_flops(MODEL)
    assert learned(TYPICAL_SPEED, small, RESIDENT, 1.0) == TYPICAL_SPEED
    assert learned(TYPICAL_SPEED, MODEL, RESIDENT, 0.0) == TYPICAL_SPEED


def test_guidance_doubles_the_work_and_giving_memory_back_costs_time(tiny: Path) -> None:
    request = replace(REQUEST, width=64, height=64)
    with_guidance, alone = (step_flops(subject(tiny, asked)) for asked in (request, replace(request, guidance=1.0)))
    assert with_guidance == pytest.approx(2 * alone, rel=5e-3), "but for the time, which both samples share"
    times = [
        step_seconds(MODEL, replace(RESIDENT, give_back=give_back), TYPICAL_SPEED)
        for give_back in ("stage", "block", "piece")
    ]
    assert times == sorted(times) and times[0] < times[2]


def test_what_stays_is_not_streamed_and_two_passes_stream_twice() -> None:
    everything = MODEL.weights.matrices_bytes
    assert streamed_bytes(MODEL, STREAMED) == everything and streamed_bytes(MODEL, RESIDENT) == 0
    part = replace(STREAMED, resident_bytes=everything // 3)
    assert streamed_bytes(MODEL, part) == everything - everything // 3
    assert streamed_bytes(MODEL, replace(part, guidance="sequential")) == 2 * streamed_bytes(MODEL, part)
    assert step_seconds(MODEL, replace(RESIDENT, guidance="sequential"), TYPICAL_SPEED) == pytest.approx(
        SEQUENTIAL * step_seconds(MODEL, RESIDENT, TYPICAL_SPEED)
    )


@pytest.mark.parametrize("copied", [False, True], ids=["not copied", "copied"])
def test_a_picture_takes_the_loading_of_what_stays_or_goes_into_the_copy(copied: bool) -> None:
    everything, cast = MODEL.weights.matrices_bytes, TYPICAL_SPEED.cast_bytes
    half = replace(COPIED, residency="partial", resident_bytes=everything // 2)
    seconds = [loading_seconds(MODEL, plan, TYPICAL_SPEED, copied) for plan in (RESIDENT, STREAMED, COPIED, half)]
    to_copy = everything / cast
    expected = [everything / LOADING_BYTES, 0, 0, everything / LOADING_BYTES / 2] if copied else None
    assert seconds == pytest.approx(expected or [to_copy, 0, to_copy, to_copy])
    in_all = [
        picture_seconds(MODEL, plan, TYPICAL_SPEED, 2.0, None, None, copied) - loaded
        for plan, loaded in zip((RESIDENT, STREAMED, COPIED, half), seconds, strict=True)
    ]
    assert in_all == pytest.approx([in_all[0]] * 4), "besides, all plans take the same here"
