"""Every parser of foreign data with thousands of inputs: it takes them, or refuses them in one line.

20,000 in the fast tests and the full lane together, of which the fast tests take an eighth and the full lane the rest.
More of them, and a search that is guided by which code ran: `python -m tests.fuzz`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.harness import Escaped, Target, fed
from tests.fuzz.mutations import mutated
from tests.fuzz.seeds import found_before
from tests.fuzz.table import TARGETS

FAST_SHARE = 8


def inputs(target: Target, number: int, first: int, place: Path) -> None:
    """Feed the parser with so many, and with those that it begins with."""
    run, begin = target.prepare(place), target.seeds()
    for data in (*begin, *found_before(target.name)):
        fed(run, data, place)

    @seed(first)
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def one(random: Random) -> None:
        data = mutated(random.choice(begin), target.structure, random, begin)
        try:
            fed(run, data, place)
        except Escaped as error:
            raise AssertionError(f"{error}, of {data!r}") from error
        except Exception as error:
            error.add_note(f"of {data!r}")
            raise

    one()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    os.environ.pop("SDCLI_CONFIG", None)


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_any_input_is_taken_or_refused_in_one_line(target: Target, place: Path) -> None:
    inputs(target, target.in_ci // FAST_SHARE, 1, place)


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_any_of_many_inputs_is_taken_or_refused_in_one_line(target: Target, place: Path) -> None:
    inputs(target, target.in_ci - target.in_ci // FAST_SHARE, 2, place)


def test_20_000_inputs_in_all() -> None:
    assert sum(target.in_ci for target in TARGETS) >= 20_000
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def test_what_no_parser_may_do_is_caught(tmp_path: Path) -> None:
    def writes(data: bytes, place: Path) -> None:
        (place.parent / "outside").write_bytes(data)

    def runs(data: bytes, place: Path) -> None:
        os.system("true")

    place = tmp_path / "place"
    place.mkdir()
    for run in (writes, runs):
        with pytest.raises(Escaped):
            fed(run, b"", place)
    assert not (tmp_path / "outside").exists()
    assert fed(lambda data, place: (place / "inside").write_bytes(data), b"x", place) == ""
