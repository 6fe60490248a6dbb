"""What a run teaches of how long the next one of its kind takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.app.kinds import kind_of_run
from sdcli.app.learning import learn_from
from sdcli.app.means import Prospect
from sdcli.app.record import RunRecord, StageRecord
from sdcli.messages import StepDone
from sdcli.plan.paces import Pace, remembered_pace
from sdcli.plan.speeds import remember_speed, remembered_speed, typical_speed
from sdcli.units import MIB
from tests.host.conftest import REQUEST, task


def ran(model: Path, steps: int, prospect: Prospect | None = None) -> tuple[RunRecord, Prospect]:
    """A run that streamed from a prepared copy: 100 s, of which 60 until its weights were there, and 2 of decoding."""
    one = task(model, request=replace(REQUEST, steps=steps))
    prospect = prospect or Prospect(one)
    planned = prospect.plan(200 * MIB)
    planned = replace(planned, plan=replace(planned.plan, residency="streamed", resident_bytes=0, prepared=True))
    record = RunRecord(one, planned, baseline_bytes=200 * MIB, total_s=100.0, denoised_in={0: one.dtype})
    record.steps = [StepDone(0, step, steps, 1.5 if step == 1 else 1.0, 0) for step in range(1, steps + 1)]
    record.stages = [StageRecord("denoise", 60.0, 5.0, 0, 300 * MIB), StageRecord("decode", 0.1, 2.0)]
    return record, prospect


@pytest.mark.parametrize("meanwhile", [False, True], ids=["there before", "made by this run"])
def test_the_copy_that_a_run_made_is_no_part_of_the_next_one(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    record, prospect = ran(tiny, 4)
    monkeypatch.setattr(Prospect, "was_copied_meanwhile", meanwhile)
    learn_from(record, prospect)
    assert record.planned is not None
    pace = remembered_pace(kind_of_run(record.task, record.planned.plan))
    assert pace == Pace(1.0, 2.0, 34.0 if meanwhile else 94.0)


def test_a_run_of_one_step_teaches_how_long_that_takes_and_nothing_of_longer_ones(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path))
    record, prospect = ran(tiny, 1)
    learn_from(record, prospect)
    assert record.planned is not None
    assert remembered_pace(kind_of_run(record.task, record.planned.plan)) == Pace(1.5, 2.0, 96.5)
    longer = replace(record.task, request=replace(record.task.request, steps=2))
    assert remembered_pace(kind_of_run(longer, record.planned.plan)) is None
    assert not any((tmp_path / name).exists() for name in ("speeds.json", "remainders.json"))
    assert (tmp_path / "paces.json").exists()


def test_the_only_step_tells_of_a_machine_that_is_faster_than_was_thought(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path))
    monkeypatch.setattr("sdcli.plan.seconds.TELLING_FLOPS", 0.0)
    slow = replace(typical_speed("cpu", "fp32"), flops=2e6)
    remember_speed("cpu", "fp32", slow)
    record, prospect = ran(tiny, 1)
    learn_from(record, prospect)
    known = remembered_speed("cpu", "fp32")
    assert known is not None and known.flops > slow.flops
    assert not (tmp_path / "remainders.json").exists()


@pytest.mark.parametrize("is_made", [False, True])
def test_a_prospect_knows_whether_the_copy_came_while_it_ran(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_made: bool
) -> None:
    made = [is_made]
    monkeypatch.setattr("sdcli.app.means.place_of_copy", lambda *_: tmp_path)
    monkeypatch.setattr("sdcli.app.means.is_made", lambda _: made[0])
    prospect = Prospect(task(tiny))
    assert prospect.is_copied == is_made and not prospect.was_copied_meanwhile
    made[0] = True
    assert prospect.is_copied and prospect.was_copied_meanwhile == (not is_made)
