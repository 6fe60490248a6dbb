"""What runs teach about the machine's speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.domain import Plan, Request
from sdcli.models.folder import Model, open_model
from sdcli.plan.seconds import (
    MOST_BYTES,
    TYPICAL_SPEED,
    Speed,
    decode_extra_seconds,
    learned,
    step_flops,
    step_seconds,
    streamed_bytes,
)

REQUEST = Request("a red fox", "", 4096, 4096, 20, 7.5, 1, 1)  # so that even a tiny model has much to do
RESIDENT = Plan("resident", 2**40, "batched", 0, None, ())
STREAMED = replace(RESIDENT, residency="streamed", resident_bytes=0)
COPIED = replace(STREAMED, prepared=True)


@pytest.fixture
def model(tiny: Path) -> Model:
    return open_model("tiny", tiny)


def test_a_step_that_took_twice_as_long_halves_the_distance(model: Model) -> None:
    predicted = step_seconds(model, REQUEST, RESIDENT, "fp32", TYPICAL_SPEED)
    slower = learned(TYPICAL_SPEED, model, REQUEST, RESIDENT, "fp32", 2 * predicted)
    assert slower.flops == pytest.approx(0.75 * TYPICAL_SPEED.flops)
    assert replace(slower, flops=TYPICAL_SPEED.flops) == TYPICAL_SPEED


@pytest.mark.parametrize("plan", [RESIDENT, STREAMED, COPIED], ids=["resident", "streamed", "copied"])
@pytest.mark.parametrize("truth", [Speed(2e11, 1e8, 1e9), Speed(3e12, 5e9, 5e10)], ids=["slow", "fast"])
def test_what_is_predicted_comes_to_what_is_measured(model: Model, plan: Plan, truth: Speed) -> None:
    speed, took = TYPICAL_SPEED, step_seconds(model, REQUEST, plan, "fp32", truth)
    for _ in range(30):
        speed = learned(speed, model, REQUEST, plan, "fp32", took)
    assert step_seconds(model, REQUEST, plan, "fp32", speed) == pytest.approx(took, rel=0.35)


def test_steps_that_read_for_long_tell_of_the_reading(model: Model) -> None:
    for plan, name in ((STREAMED, "cast_bytes"), (COPIED, "prepared_bytes")):
        computing = step_seconds(model, REQUEST, RESIDENT, "fp32", TYPICAL_SPEED)
        now = learned(TYPICAL_SPEED, model, REQUEST, plan, "fp32", 10 * computing)
        rate = streamed_bytes(model, REQUEST, plan, "fp32") / (9 * computing)
        assert getattr(now, name) == pytest.approx((getattr(TYPICAL_SPEED, name) + rate) / 2)
        assert replace(now, **{name: getattr(TYPICAL_SPEED, name)}) == TYPICAL_SPEED


def test_saving_memory_in_the_decoder_costs_time_once_or_for_each_picture() -> None:
    plain, tiled, fresh, both = (
        decode_extra_seconds(asked, replace(RESIDENT, vae_tile=tile, fresh_decode=apart), TYPICAL_SPEED)
        for asked, tile, apart in (
            (REQUEST, None, False),
            (REQUEST, 2, False),
            (REQUEST, None, True),
            (REQUEST, 2, True),
        )
    )
    assert 0.0 == plain < tiled < both == tiled + fresh
    many = replace(REQUEST, count=7)
    assert decode_extra_seconds(many, replace(RESIDENT, vae_tile=2), TYPICAL_SPEED) == pytest.approx(7 * tiled)
    assert decode_extra_seconds(many, replace(RESIDENT, fresh_decode=True), TYPICAL_SPEED) == fresh


def test_a_run_from_a_cold_cache_teaches_nothing_of_the_arithmetic_nor_does_the_warm_one_after_it(model: Model) -> None:
    warm = step_seconds(model, REQUEST, COPIED, "fp32", TYPICAL_SPEED)
    slowed = learned(TYPICAL_SPEED, model, REQUEST, COPIED, "fp32", 2 * warm)
    again = learned(slowed, model, REQUEST, COPIED, "fp32", warm)
    assert slowed.prepared_bytes < again.prepared_bytes < TYPICAL_SPEED.prepared_bytes
    assert slowed.flops == again.flops == TYPICAL_SPEED.flops


def test_a_streamed_step_faster_than_its_arithmetic_tells_of_that(model: Model) -> None:
    computing = step_seconds(model, REQUEST, RESIDENT, "fp32", TYPICAL_SPEED)
    now = learned(TYPICAL_SPEED, model, REQUEST, COPIED, "fp32", computing / 2)
    assert now == replace(TYPICAL_SPEED, flops=pytest.approx(1.5 * TYPICAL_SPEED.flops))
    most = learned(TYPICAL_SPEED, model, REQUEST, COPIED, "fp32", computing * (1 + 1e-9))
    assert most == replace(TYPICAL_SPEED, prepared_bytes=(TYPICAL_SPEED.prepared_bytes + MOST_BYTES) / 2)


def test_small_steps_and_no_time_say_nothing(model: Model) -> None:
    small = replace(REQUEST, width=64, height=64)
    assert learned(TYPICAL_SPEED, model, small, RESIDENT, "fp32", 1.0) == TYPICAL_SPEED
    assert learned(TYPICAL_SPEED, model, REQUEST, RESIDENT, "fp32", 0.0) == TYPICAL_SPEED


def test_guidance_doubles_the_work_and_giving_memory_back_costs_time(model: Model) -> None:
    alone = replace(REQUEST, guidance=1.0)
    assert step_flops(model, REQUEST) == 2 * step_flops(model, alone)
    times = [
        step_seconds(model, REQUEST, replace(RESIDENT, give_back=give_back), "fp32", TYPICAL_SPEED)
        for give_back in ("stage", "block", "piece")
    ]
    assert times == sorted(times) and times[0] < times[2]
