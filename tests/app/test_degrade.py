"""A ceiling that is crossed, with workers that are scripts: which attempt follows which, and what is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from sdcli.app.means import Prospect
from sdcli.app.record import RunRecord, Task
from sdcli.app.run import run_task
from sdcli.domain import Request
from sdcli.errors import CeilingCrossed
from sdcli.messages import PictureDone
from sdcli.plan.planner import Planned
from sdcli.units import MIB
from tests.host.conftest import standing
from tests.host.conftest import task as task_of

TWO = Request("a red fox", "", 256, 256, 8, 7.5, 11, 2)

BODY = """
import json
say(Ready("a script", "2.0"))
job = hear()
number = len(open("jobs").readlines()) if os.path.exists("jobs") else 0
print(json.dumps([job.part, job.payload.decode(), job.plan.ways.get("decode"), job.plan.fresh_decode]),
      file=open("jobs", "a"))
def cross(when):
    if when:
        kept = [b"x" * 2**21 for _ in range(600)]
        time.sleep(600)
def denoise():
    say(StageBegan("denoise"))
    if "latents 0" not in job.payload.decode():
        say(StepDone(0, number + 1, 8, 0.1, 0, b"step %d of 0;" % (number + 1)))
        cross(CROSSES_DENOISING)
    say(LatentsDone(0, b"latents 0;"))
    say(StepDone(1, number + 1, 8, 0.1, 0, b"step %d of 1;" % (number + 1)))
    cross(CROSSES_LATER)
    say(LatentsDone(1, b"latents 1;"))
    say(StageEnded("denoise", 1.0))
def decode():
    say(StageBegan("decode"))
    cross(CROSSES_DECODING)
    for image in range(2):
        say(PictureDone(image, 11 + image, 256, 256, b"picture %d" % image))
    say(StageEnded("decode", 1.0))
if job.part != "pictures":
    denoise()
if job.part != "latents":
    decode()
say(Finished())
time.sleep(600)
"""


def body(denoising: str = "False", later: str = "False", decoding: str = "False") -> str:
    """The script of a worker that crosses the ceiling where these hold, by the `number` of workers before it."""
    whole = BODY.replace("CROSSES_DENOISING", denoising).replace("CROSSES_LATER", later)
    return whole.replace("CROSSES_DECODING", decoding)


def run(asked: Task) -> tuple[RunRecord, list[int]]:
    kept: list[int] = []

    def save(picture: PictureDone, _: RunRecord) -> str:
        kept.append(picture.image)
        return f"{picture.image}.png"

    record = RunRecord(asked)
    try:
        run_task(asked, record, save, lambda *_: None)
    finally:
        record.total_s = -1.0
    return record, kept


def jobs() -> list[list[object]]:
    """What each worker was told."""
    return [json.loads(line) for line in Path("jobs").read_text().splitlines()]


@pytest.fixture
def asked(tiny: Path) -> Task:
    """A task under a ceiling that a script crosses when it likes."""
    return task_of(tiny, standing() + 500 * MIB, request=TWO)


@pytest.mark.full
def test_it_goes_on_from_the_last_step_and_nothing_is_denoised_twice(
    asked: Task, script: Callable[[str], None]
) -> None:
    script(body(denoising="number == 0", later="number == 1"))
    record, kept = run(asked)
    assert kept == [0, 1] and record.degraded == 2
    assert [job[1] for job in jobs()][:3] == ["", "step 1 of 0;", "latents 0;step 2 of 1;"]
    assert [job[0] for job in jobs()][3:] in ([], ["pictures"]), "a smaller plan may have a worker of its own decode"
    assert [step for step, _ in record.events] == [1, 2]
    for _, what in record.events:
        assert "was crossed in the stage denoise after step" in what
        assert what.endswith((": going on from there with a smaller plan", ": going on from there in a new worker"))


def test_where_all_is_denoised_pictures_alone_are_drawn_in_the_least_memory(
    asked: Task, script: Callable[[str], None]
) -> None:
    script(body(decoding="number == 0"))
    record, kept = run(asked)
    assert kept == [0, 1] and record.degraded == 1
    first, second = jobs()
    assert first[0] == "whole" and second == ["pictures", "latents 0;latents 1;", "recomputed", True]


GROWING = """
say(Ready("a script", "2.0"))
job = hear()
kept, done = [], 0 if not job.payload else int(job.payload)
open("jobs", "a").write(f"{done}\\n")
say(StageBegan("denoise"))
for step in range(done + 1, 9):
    kept.append(b"x" * (GROWS << 20))
    time.sleep(0.1)
    say(StepDone(0, step, 8, 0.1, 0, b"%d" % step))
say(LatentsDone(0, b"latents"))
say(StageEnded("denoise", 1.0))
say(PictureDone(0, 11, 256, 256, b"picture"))
say(Finished())
time.sleep(600)
"""


def test_a_worker_that_grows_is_left_before_it_crosses(tiny: Path, script: Callable[[str], None]) -> None:
    script(GROWING.replace("GROWS", "240"))
    record, kept = run(task_of(tiny, standing() + 900 * MIB, request=replace(TWO, count=1)))
    assert kept == [0] and record.degraded == 2 and record.peak_bytes < standing() + 900 * MIB
    begun = [int(line) for line in Path("jobs").read_text().splitlines()]
    assert begun == sorted(set(begun)) and [step for step, _ in record.events] == begun[1:]
    for _, what in record.events:
        assert "would be crossed in the stage denoise after step" in what and ": going on from there " in what


@pytest.mark.parametrize(("grows", "on_limit"), [(2, "degrade"), (100, "kill")])
def test_a_worker_that_grows_little_or_is_to_be_killed_is_let_alone(
    tiny: Path, script: Callable[[str], None], grows: int, on_limit: Literal["degrade", "kill"]
) -> None:
    script(GROWING.replace("GROWS", str(grows)))
    asked = task_of(tiny, standing() + 1300 * MIB, request=replace(TWO, count=1), on_limit=on_limit)
    record, kept = run(asked)
    assert kept == [0] and record.degraded == 0 and record.events == []


def test_no_more_than_three_times(asked: Task, script: Callable[[str], None]) -> None:
    script(body(denoising="True"))
    with pytest.raises(CeilingCrossed, match="was crossed in the stage denoise after step 4: footprint "):
        run(asked)
    assert [job[1] for job in jobs()] == ["", "step 1 of 0;", "step 2 of 0;", "step 3 of 0;"]


def test_where_a_worker_comes_no_further_and_nothing_is_smaller_it_is_the_end(
    asked: Task, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(self: Prospect, planned: Planned, *_: object) -> None:
        return None

    monkeypatch.setattr(Prospect, "smaller", none)
    script(body().replace('say(StageBegan("denoise"))', 'say(StageBegan("denoise")); cross(True)'))
    with pytest.raises(CeilingCrossed):
        run(asked)
    assert len(jobs()) == 1


def test_asked_to_kill_it_kills(tiny: Path, script: Callable[[str], None]) -> None:
    script(body(denoising="True"))
    with pytest.raises(CeilingCrossed):
        run(task_of(tiny, standing() + 500 * MIB, request=TWO, on_limit="kill"))
    assert len(jobs()) == 1


@pytest.mark.full
def test_the_next_plan_is_smaller_by_what_was_measured_over_what_was_predicted(tiny: Path) -> None:
    baseline, large = 200 * MIB, replace(TWO, width=768, height=768)
    free = Prospect(task_of(tiny, 2**40, request=large))
    needed = next(need.peak_bytes for need in free.plan(baseline).needs if need.name == "denoise") + 20 * MIB
    limit = max(needed, free.least_limit_bytes(baseline))  # decoding needs more on some processors
    prospect = Prospect(task_of(tiny, limit, request=large))
    planned = prospect.plan(baseline)
    peaks = [{need.name: need.peak_bytes for need in planned.needs}["denoise"]]
    while (smaller := prospect.smaller(planned, "denoise", limit + MIB)) is not None:
        planned = smaller
        peaks.append({need.name: need.peak_bytes for need in planned.needs}["denoise"])
    assert peaks == sorted(set(peaks), reverse=True) and 2 <= len(peaks) < 9
    assert planned.plan.residency == "streamed" or planned.plan.give_back != "stage"
