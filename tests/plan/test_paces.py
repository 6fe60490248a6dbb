"""Paces of runs are remembered by kind, as the mean of what was and what is, and a damaged memory is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdcli.plan.paces import KEPT, Pace, remember_pace, remembered_pace


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path))
    return tmp_path


def test_each_kind_has_its_own_and_moves_half_way() -> None:
    assert remembered_pace("a") is None
    remember_pace("a", Pace(2.0, 10.0, 5.0))
    remember_pace("b", Pace(3.0, 30.0, 7.0))
    assert remembered_pace("a") == Pace(2.0, 10.0, 5.0)
    remember_pace("a", Pace(4.0, 20.0, 3.0))
    assert remembered_pace("a") == Pace(3.0, 15.0, 4.0) and remembered_pace("b") == Pace(3.0, 30.0, 7.0)


def test_a_run_beside_other_work_is_forgotten_by_the_next_one() -> None:
    remember_pace("a", Pace(110.0, 90.0, 6.0))
    remember_pace("a", Pace(18.0, 30.0, 5.0))
    assert remembered_pace("a") == Pace(18.0, 30.0, 5.5)


def test_the_oldest_go() -> None:
    for number in range(KEPT + 1):
        remember_pace(str(number), Pace(1.0, 1.0, 1.0))
        remember_pace("0", Pace(1.0, 1.0, 1.0))
    assert remembered_pace("1") is None and remembered_pace("0") == remembered_pace("2") == Pace(1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"a": 1}', '{"a": [1, 1]}', '{"a": [1, 1, "x"]}', '{"a": [0, 1, 1]}', '{"a": [1, NaN, 1]}'],
)
def test_what_cannot_be_read_is_forgotten_and_replaced(cache: Path, text: str) -> None:
    (cache / "paces.json").write_text(text)
    assert remembered_pace("a") is None
    remember_pace("a", Pace(1.0, 2.0, 3.0))
    assert remembered_pace("a") == Pace(1.0, 2.0, 3.0)


def test_what_a_run_takes_once_is_counted_once() -> None:
    assert Pace(2.0, 10.0, 5.0).of(pictures=1, steps=3) == 21.0
    assert Pace(2.0, 10.0, 5.0).of(pictures=4, steps=3) == 69.0
