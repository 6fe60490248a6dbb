"""What a plan says of a step's reading: bytes of weights that do not stay, and a speed that was measured or none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli import settings
from sdcli.app import reading
from sdcli.app.means import Prospect
from sdcli.app.reading import Reads, reads_of, reads_table
from sdcli.app.record import Task
from sdcli.plan.planner import Planned
from sdcli.units import GIB
from tests.families.flux2.conftest import klein
from tests.host.conftest import REQUEST, task

__all__ = ["klein"]


def reads(asked: Task) -> Reads | None:
    return reads_of(*prospect(asked))


def prospect(asked: Task) -> tuple[Prospect, Planned]:
    found = Prospect(asked)
    return found, found.plan(100 * 2**20)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were measured, at 1 MB a second; nothing here lies in memory."""
    asked: list[Path] = []

    def measure(path: Path) -> float:
        asked.append(path)
        return 1e6

    monkeypatch.setattr(reading, "reading_speed", measure)
    monkeypatch.setattr(reading, "lies_in_memory", lambda path: False)
    return asked


@pytest.mark.full
def test_weights_that_lie_in_the_file_are_read_in_every_step(klein: Path, measured: list[Path]) -> None:
    asked = task(klein, 2 * GIB, replace(REQUEST, guidance=1.0))
    found = reads(asked)
    weights = asked.model.parts["transformer"].weights()
    matrices = sum(origin.info.nbytes for name, origin in weights.items() if len(origin.shape) > 1)
    assert found is not None and found.step_bytes == matrices
    assert found.disk_s == pytest.approx(matrices / 1e6) and found.bound == "disk"
    assert [path.parent.name for path in measured] == ["transformer"], "the largest file"
    reads(asked)
    assert len(measured) == 1, "once"
    table = json.loads((settings.cache_dir() / "disks.json").read_text())
    assert [*table.values()] == [1e6]
    guided = reads(replace(asked, request=replace(asked.request, guidance=4.0)))
    assert guided is not None and guided.step_bytes == 2 * matrices


def test_nothing_is_read_where_all_stays_and_nothing_is_said_of_a_disk_that_is_not_known(
    tiny: Path, klein: Path, measured: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reads(task(tiny, None)) is None and measured == []
    monkeypatch.setattr(reading, "reading_speed", lambda path: None)
    found = reads(task(klein, 2 * GIB))
    assert found is not None and (found.disk_s, found.bound) == (None, None)
    table = reads_table(found)
    assert table is not None and table["disk_bytes_a_second"] is None and table["step_bytes"] > 0
    monkeypatch.setattr(reading, "lies_in_memory", lambda path: True)
    assert reads(task(klein, 2 * GIB)) is None and reads_table(None) is None


def test_the_longer_of_the_two_bounds_a_step() -> None:
    assert Reads(1000, 100.0, 11.0).bound == "arithmetic" and Reads(1000, 100.0, 9.0).bound == "disk"
