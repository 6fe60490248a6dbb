"""Where no prepared copy is made: because that was asked for, or because the disk has no room, which is said."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli import machine
from sdcli.app.asked import Asked
from sdcli.app.means import Prospect
from sdcli.app.record import Task
from sdcli.app.tasks import prepare
from sdcli.units import GIB
from sdcli.weights import copies
from tests.support import RESIDENT, STREAMED

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def task(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(machine, "cpu_packs_weights", lambda dtype: True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 100 * GIB))
    monkeypatch.setattr(copies, "lies_in_memory", lambda path: False)
    asked = Asked("a fox", seed=7, model=str(tiny), device="cpu", dtype="fp32")
    return prepare(asked, lambda note: None, lambda name: lambda progress: None)


def test_no_prepare_makes_none_and_uses_none_that_is_there(task: Task) -> None:
    place = Prospect(task).copy
    assert place is not None and Prospect(task).lack_of_copy(STREAMED) == ""
    place.mkdir(parents=True)
    for name in (copies.WEIGHTS, copies.INDEX):
        (place / name).touch()
    without = Prospect(replace(task, prepares=False))
    assert without.copy is None and without.lack_of_copy(STREAMED) == ""
    assert not without.plan(200 * 2**20).plan.prepared


def test_a_disk_without_room_is_named_where_a_copy_would_help(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, GIB))
    prospect = Prospect(task)
    assert prospect.copy is None and prospect.lack_of_copy(RESIDENT) == ""
    lack = prospect.lack_of_copy(STREAMED)
    assert lack.startswith("no prepared copy of the denoiser, each step takes longer: it wants 2.00 GiB free")
    assert "has 1.00 GiB: make room, or set SDCLI_CACHE to another disk" in lack
    monkeypatch.setattr(machine, "cpu_packs_weights", lambda dtype: False)
    assert prospect.lack_of_copy(STREAMED) == "", "no disk would help"


def test_the_option_is_that_wish(tiny: Path, task: Task) -> None:
    asked = Asked("a fox", seed=7, model=str(tiny), no_prepare=True)
    assert task.prepares and not prepare(asked, lambda note: None, lambda name: lambda progress: None).prepares
