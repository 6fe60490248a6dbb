"""bench: which cases it runs, in which order, and what it says of them. No worker is started but in the last test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli import machine
from sdcli.app.benching import bench_report, by_case, in_turn
from sdcli.app.record import RunRecord, StageRecord, Task
from sdcli.cli import bench_table
from sdcli.errors import CeilingCrossed, SdcliError
from sdcli.messages import StepDone
from sdcli.units import GIB, MIB
from tests.cli.conftest import Command, shell

Tasks = list[Task]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """The tasks that are run, which take no time, on a machine of 64 GiB."""
    tasks: Tasks = []
    monkeypatch.setattr("sdcli.app.benching.run_task", lambda task, *_: tasks.append(task))
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: None)
    return tasks


def told(tasks: Tasks) -> list[tuple[int, int, int | None]]:
    """Width, height and ceiling of each."""
    return [(task.request.width, task.request.height, task.ceiling.limit_bytes) for task in tasks]


def test_every_size_is_run_under_every_ceiling_and_each_model_is_warmed_up_once(
    sdcli: Command, tiny: Path, tmp_path: Path, measured: Tasks
) -> None:
    other = tmp_path / "other"
    other.symlink_to(tiny)
    outcome = sdcli("bench", "-m", tiny, "-m", other, "--sizes", "64x64,128x64", "--mem-limit", "1GiB,none")
    assert outcome.code == 0, outcome.err
    first, second, *rest = measured
    assert first.model.ref == str(tiny) and second.model.ref == str(other)
    assert [task.ceiling.limit_bytes for task in (first, second)] == [None, None]
    assert told(rest) == [(64, 64, GIB), (64, 64, None), (128, 64, GIB), (128, 64, None)] * 2
    assert [task.model.ref for task in rest] == [str(tiny)] * 4 + [str(other)] * 4
    headings = [line for line in outcome.out.splitlines() if "64, 4 steps, cpu in" in line]
    assert len(headings) == 4, "a table each"


def test_repeats_begin_with_another_case_each_time(sdcli: Command, tiny: Path, measured: Tasks) -> None:
    options = ("--mem-limit", "1GiB,2GiB,3GiB", "--repeat", "2", "--no-warmup")
    outcome = sdcli("bench", "-m", tiny, "--size", "64x64", "--json", *options)
    assert [limit and limit // GIB for _, _, limit in told(measured)] == [1, 2, 3, 2, 3, 1]
    runs = json.loads(outcome.out)["runs"]
    assert [run["repeat"] for run in runs] == [1, 1, 1, 2, 2, 2]
    assert [run["case"]["limit_bytes"] // GIB for run in runs] == [1, 2, 3, 2, 3, 1]
    assert {run["command"] for run in runs} == {
        f"sdcli bench -m {tiny} --size 64x64 --json --mem-limit 1GiB,2GiB,3GiB --repeat 2 --no-warmup"
    }
    assert "under 3.00 GiB, run 2 of 2:" in outcome.err
    assert [number for number, _ in in_turn(measured[:1], 3)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "environment", "limits"),
    [
        (["--profile", "iphone-4gb,iphone-6gb"], {}, [2.0, 2.8]),
        (["--profile", "iphone-4gb", "--mem-limit", "1GiB"], {}, [1.0, 2.0]),
        (["--mem-limit", "1GiB"], {"SDCLI_PROFILE": "iphone-4gb"}, [1.0]),
        (["--profile", "iphone-4gb"], {"SDCLI_MEM_LIMIT": "1GiB"}, [2.0]),
        ([], {"SDCLI_PROFILE": "iphone-4gb,iphone-6gb"}, [2.0, 2.8]),
    ],
)
def test_profiles_give_ceilings(
    sdcli: Command,
    tiny: Path,
    measured: Tasks,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    environment: dict[str, str],
    limits: list[float],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sdcli("bench", "-m", tiny, "--no-warmup", *options).code == 0
    assert [round((task.ceiling.limit_bytes or 0) / GIB, 2) for task in measured] == limits


def test_img2img_edits_a_picture_of_its_own_at_every_size(sdcli: Command, tiny: Path, measured: Tasks) -> None:
    options = ("--img2img", "--strength", "0.5", "--sizes", "64x64,128x64", "--no-warmup", "--mem-limit", "none")
    assert sdcli("bench", "-m", tiny, *options).code == 0
    assert [len(task.pixels) for task in measured] == [64 * 64 * 3, 128 * 64 * 3]
    assert {task.request.strength for task in measured} == {0.5}
    assert len(set(measured[0].pixels)) > 50, "it is no plain colour"
    assert sdcli("bench", "-m", tiny, "--no-warmup", "--strength", "0.5").code == 0
    assert measured[-1].request.strength is None and measured[-1].pixels == b""


def test_a_picture_that_is_given_is_brought_to_every_size(
    sdcli: Command, tiny: Path, measured: Tasks, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (80, 40), (10, 200, 30)).save(tmp_path / "init.png")
    options = ("--init", tmp_path / "init.png", "--sizes", "64x64,64x128", "--no-warmup", "--mem-limit", "none")
    assert sdcli("bench", "-m", tiny, *options).code == 0
    assert [task.pixels for task in measured] == [bytes((10, 200, 30)) * 64 * side for side in (64, 128)]
    assert {task.request.strength for task in measured} == {0.6}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "64x64", "--size", "64x64"], "two sizes: give --sizes or --size, not both"),
        (["--sizes", "64x64,9"], "'9' is not a size"),
        (["--profile", "iphone-4gb,pager"], "no such profile: 'pager'"),
        (["--max-slowdown", "5"], "give --against OLD.json"),
        (["--repeat", "0"], "0"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    sdcli: Command, tiny: Path, measured: Tasks, options: list[str], words: str
) -> None:
    sdcli("bench", "-m", tiny, "-q", *options).refused(2, words)
    assert measured == []


def test_a_kernel_limit_that_nobody_keeps_is_refused_before_anything_is_drawn(
    sdcli: Command, tiny: Path, measured: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdcli.host.control_group.memory_groups", lambda: iter([]))
    sdcli("bench", "-m", tiny, "-q", "--kernel-limit", "1GiB").refused(1, "may make no memory control group here")
    assert measured == []


@pytest.mark.parametrize(("share", "said"), [(0.31, True), (0.05, False), (None, False)])
def test_others_that_take_the_processor_are_told(
    sdcli: Command, tiny: Path, measured: Tasks, monkeypatch: pytest.MonkeyPatch, share: float | None, said: bool
) -> None:
    monkeypatch.setattr("sdcli.app.disturbance.Neighbours.share", lambda _: share)
    outcome = sdcli("bench", "-m", tiny, "--no-warmup", "--json")
    lines = [line for line in outcome.err.splitlines() if "other programs" in line]
    whens = ["before the first run", "meanwhile"] if said else []
    assert lines == [
        f"warning: other programs took 31% of the cores {when}: the figures are disturbed" for when in whens
    ]
    report = json.loads(outcome.out)
    assert report["machine"]["disturbed_before"] == share == report["runs"][0]["disturbed"]


def filled(seconds: float) -> Callable[..., None]:
    """Stands for run_task: a run that has three steps, of which the first takes twice as long."""

    def run_task(task: Task, record: RunRecord, *_: object) -> None:
        assert task.ceiling.limit_bytes is not None
        record.peak_bytes, record.peak_rss_bytes = task.ceiling.limit_bytes - MIB, 2 * GIB
        record.total_s = 10 * seconds
        record.stages.append(StageRecord("encode_prompt", 0.1, 0.2, 150 * MIB, 120 * MIB))
        record.stages.append(StageRecord("denoise", 1.5, 4 * seconds, 800 * MIB, 700 * MIB))
        for step, factor in enumerate((2.0, 1.0, 1.1), start=1):
            record.steps.append(StepDone(0, step, 3, factor * seconds, 1640 * MIB))
        if task.ceiling.limit_bytes < GIB:
            raise CeilingCrossed("the ceiling of 512 MiB was crossed")

    return run_task


def test_the_tables_tell_all_and_fit_100_columns(
    sdcli: Command, tiny: Path, measured: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdcli.app.benching.run_task", filled(11.2))
    outcome = sdcli("bench", "-m", tiny, "--no-warmup", "--mem-limit", "2.8GiB,512MiB", "--repeat", "3")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines == [
        "ceiling   outcome  predicted  peak   RSS  group  first s      s/step (spread)  read  total s",
        "2.80 GiB  ok       -          2866  2048  -        22.40  11.76 (11.20-12.32)  1640    112.0",
        "512 MiB   killed   -           511  2048  -        22.40  11.76 (11.20-12.32)  1640    112.0",
        bench_table.CAPTION,
        "",
        "ceiling   stage          weights  load s  run s  predicted  peak",
        "2.80 GiB  encode_prompt              0.1    0.2        150   120",
        "          denoise                    1.5   44.8        800   700",
        "512 MiB   encode_prompt              0.1    0.2        150   120",
        "          denoise                    1.5   44.8        800   700",
    ]
    assert max(map(len, lines)) <= 100


def against(
    sdcli: Command, tiny: Path, old: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, *options: str
) -> Any:
    monkeypatch.setattr("sdcli.app.benching.run_task", filled(seconds))
    common = ("bench", "-m", tiny, "-q", "--no-warmup", "--mem-limit", "2GiB", "--repeat", "2")
    if not old.exists():
        outcome = sdcli(*common, "--json")
        assert outcome.code == 0
        old.write_text(outcome.out)
    return sdcli(*common, "--against", old, *options)


def test_what_changed_since_an_older_bench_is_told(
    sdcli: Command, tiny: Path, measured: Tasks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    same = against(sdcli, tiny, old, monkeypatch, 1.0, "--max-slowdown", "0", "--max-growth", "0")
    assert (same.code, same.out.splitlines()[-1]) == (0, "nothing changed beyond the noise")

    slower = against(sdcli, tiny, old, monkeypatch, 1.2)
    *_, step, total = slower.out.splitlines()
    assert slower.code == 0 and "time a step 1.05 s -> 1.26 s (+20.0%)" in step
    assert "total time 10.00 s -> 12.00 s (+20.0%)" in total

    bounded = against(sdcli, tiny, old, monkeypatch, 1.2, "--max-slowdown", "25", "--max-growth", "1")
    assert bounded.code == 0
    failed = against(sdcli, tiny, old, monkeypatch, 1.2, "--max-slowdown", "15", "--json")
    assert failed.code == 1 and failed.err.startswith("Error: worse than it may be: ")
    assert failed.err.endswith("time a step 1.05 s -> 1.26 s (+20.0%), and 1 more\n")
    assert json.loads(failed.out)["against"] == [step, total]

    faster = against(sdcli, tiny, old, monkeypatch, 0.5, "--max-slowdown", "0")
    assert faster.code == 0 and "(-50.0%)" in faster.out


def test_a_case_that_comes_to_another_end_is_worse(
    sdcli: Command, tiny: Path, measured: Tasks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    against(sdcli, tiny, old, monkeypatch, 1.0)

    def fail(*_: object) -> None:
        raise CeilingCrossed("the ceiling was crossed")

    monkeypatch.setattr("sdcli.app.benching.run_task", fail)
    common = ("bench", "-m", tiny, "-q", "--no-warmup", "--mem-limit", "2GiB", "--against", old)
    told = sdcli(*common)
    assert told.code == 0 and told.out.splitlines()[-1].endswith("ok -> killed")
    assert sdcli(*common, "--max-growth", "50").code == 1
    other = sdcli("bench", "-m", tiny, "-q", "--no-warmup", "--mem-limit", "3GiB", "--against", old)
    assert other.code == 1 and "has none of these cases" in other.err


def test_an_older_bench_that_is_none_is_refused_before_anything_is_drawn(
    sdcli: Command, tiny: Path, measured: Tasks, tmp_path: Path
) -> None:
    (tmp_path / "old.json").write_text('{"schema": "sdcli.report/1"}')
    sdcli("bench", "-m", tiny, "-q", "--against", tmp_path / "old.json").refused(1, "is no report of sdcli.bench/1")
    assert measured == []


def test_failures_do_not_hide_what_was_measured(
    sdcli: Command, tiny: Path, measured: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: Task, *_: object) -> None:
        if task.ceiling.limit_bytes == GIB:
            raise SdcliError("the disk failed")

    monkeypatch.setattr("sdcli.app.benching.run_task", fail)
    outcome = sdcli("bench", "-m", tiny, "-q", "--no-warmup", "--mem-limit", "1GiB,none", "--repeat", "2", "--json")
    assert (outcome.code, outcome.err) == (1, "Error: the disk failed\n")
    runs = json.loads(outcome.out)["runs"]
    assert [run["outcome"] for run in runs] == ["failed", "ok", "ok", "failed"]


@pytest.mark.full
def test_a_real_bench_has_all_its_figures(tiny: Path, work: Path) -> None:
    options = (
        "--mem-limit",
        "none",
        "--sizes",
        "64x64,128x64",
        "-s",
        "3",
        "--repeat",
        "2",
        "--img2img",
        "--strength",
        "1",
    )
    done = shell(work, "bench", "-m", tiny, *options, "--no-warmup", "--json", "-q")
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [(run["case"]["width"], run["repeat"]) for run in runs] == [(64, 1), (128, 1), (128, 2), (64, 2)]
    for run in runs:
        assert run["outcome"] == "ok" and len(run["step_s"]) == 3 == run["steps"]["count"]
        assert run["memory"]["peak_bytes"] < run["memory"]["peak_rss_bytes"]
        assert run["disturbed"] is None or 0 <= run["disturbed"] <= 1
        assert [stage["name"] for stage in run["stages"]] == ["encode_prompt", "encode_image", "denoise", "decode"]
    assert not list(work.iterdir())


def test_runs_of_a_case_stay_together(measured: Tasks, sdcli: Command, tiny: Path) -> None:
    sdcli("bench", "-m", tiny, "--mem-limit", "1GiB,2GiB", "--no-warmup")
    from sdcli.app.benching import Ran

    runs = [Ran(RunRecord(task), "ok", repeat) for repeat, task in in_turn(measured, 2)]
    assert [[ran.repeat for ran in case] for case in by_case(runs)] == [[1, 2], [1, 2]]
    assert [run["case"]["limit_bytes"] for run in bench_report(runs, "", None)["runs"]] == [
        limit * GIB for limit in (1, 2, 2, 1)
    ]
