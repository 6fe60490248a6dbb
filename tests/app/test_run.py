"""One run seen from the host: with workers that are scripts and end in every way, and with the real one."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdcli.app.attempt import job_of
from sdcli.app.means import Prospect
from sdcli.app.record import RunRecord, Task
from sdcli.app.report import report
from sdcli.app.run import run_task
from sdcli.errors import BY_NAME, BadRequest, CeilingCrossed, Interrupted, SdcliError, WillNotFit
from sdcli.host.making import make_synthetic
from sdcli.host.watchdog import WARN_BYTES, Watchdog
from sdcli.messages import Message, PictureDone, StepDone
from sdcli.plan.baselines import remember_baseline, remembered_baseline
from sdcli.plan.meter import Memory, TreeMeter
from sdcli.plan.planner import Planned, make_plan
from sdcli.units import MIB
from tests.host.conftest import REQUEST, standing, task

READY = 'say(Ready("a script", "2.0"))\njob = hear()\nassert isinstance(job, Job)\n'
IN_STEP_1 = (
    READY + 'say(StageBegan("denoise"))\nsay(StageLoaded("denoise", 0.5))\nsay(StepDone(0, 1, 4, 0.1, 0, b"x"))\n'
)
DRAWN = 'say(LatentsDone(0, b"y"))\nsay(StageEnded("denoise", 1.5))\nsay(PictureDone(0, 11, 64, 64, b"p"))\n'
PICTURE = DRAWN + "say(Finished())\ntime.sleep(600)\n"

Save = Callable[[PictureDone, RunRecord], str | None]


class Saved:
    """Saves pictures in memory."""

    def __init__(self) -> None:
        self.pixels: list[bytes] = []

    def __call__(self, picture: PictureDone, record: RunRecord) -> str:
        self.pixels.append(picture.payload)
        return "fox.png"


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a worker fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr("sdcli.host.watched.Worker", refuse)


def run(
    asked: Task,
    save: Save = lambda *_: "fox.png",
    show: Callable[[Message], None] = lambda _: None,
    resume: dict[int, bytes] | None = None,
) -> RunRecord:
    record = RunRecord(asked)
    record.checkpoints.update(resume or {})
    run_task(asked, record, save, lambda message, _: show(message))
    return record


def test_a_run_is_recorded_as_it_goes(tiny: Path, script: Callable[[str], None]) -> None:
    script(IN_STEP_1 + 'say(Notice("left out", 1))\n' + PICTURE)
    shown: list[Message] = []
    record = run(task(tiny), show=shown.append)
    assert [type(message).__name__ for message in shown] == [
        "Ready", "StageBegan", "StageLoaded", "StepDone", "Notice",
        "LatentsDone", "StageEnded", "PictureDone", "Finished",
    ]  # fmt: skip
    assert (record.device, record.torch_version, record.events) == ("a script", "2.0", [(1, "left out")])
    (stage,) = record.stages
    assert (stage.name, stage.load_s, stage.run_s) == ("denoise", 0.5, 1.5)
    assert record.planned is not None
    assert stage.predicted_peak_bytes == {need.name: need.peak_bytes for need in record.planned.needs}["denoise"]
    assert record.checkpoints == {} and [path for path, _ in record.pictures] == ["fox.png"]
    assert record.baseline_bytes > 0 and record.samples > 0 and record.peak_bytes >= stage.peak_bytes
    assert report(record)["images"] == [{"path": "fox.png", "seed": 11, "width": 64, "height": 64}]


def test_the_footprint_over_time_is_reported_where_it_is_asked_for(tiny: Path, script: Callable[[str], None]) -> None:
    script(IN_STEP_1.replace("say(StepDone", "time.sleep(0.1)\nsay(StepDone") + PICTURE)
    record = run(task(tiny))
    assert "series" not in report(record)["memory"]
    memory = report(record, with_series=True)["memory"]
    times, footprints, stages = zip(*memory["series"], strict=True)
    assert times[0] >= 0 and list(times) == sorted(times) and times[-1] <= record.total_s
    assert max(footprints) == memory["peak_bytes"] and set(stages) == {"start", "denoise"}


def test_the_job_carries_init_image_and_checkpoints(tiny: Path, script: Callable[[str], None]) -> None:
    script(READY + 'say(Notice(f"{job.checkpoints} {job.payload} {job.request.strength}"))\nsay(Finished())\n')
    asked = task(tiny, request=replace(REQUEST, strength=0.5), pixels=b"pixels")
    record = run(asked, resume={1: b"second", 0: b"one"})
    assert record.events == [(None, f"(3, 6) {b'pixelsonesecond'} 0.5")]
    assert record.planned is not None
    decoding = job_of(Prospect(asked), record.planned.plan, {0: b"one"}, "pictures")
    assert (decoding.checkpoints, decoding.payload) == ((3,), b"one"), "what only decodes needs no init image"


# Workers that end badly


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        pytest.param("os.kill(os.getpid(), 7)", "the model's file changed or its disk failed", id="D18 SIGBUS"),
        pytest.param("os.kill(os.getpid(), 9)", "killed, by the system's out-of-memory killer perhaps", id="SIGKILL"),
        pytest.param("os.kill(os.getpid(), 11)", "crashed in native code (signal 11)", id="SIGSEGV"),
        pytest.param("os.kill(os.getpid(), 4)", "instructions that this processor lacks (signal 4)", id="SIGILL"),
        pytest.param("os.kill(os.getpid(), 6)", "the worker ended with code -6", id="SIGABRT"),
        pytest.param("os.kill(os.getpid(), 15)", "terminated by somebody (signal 15)", id="SIGTERM"),
        pytest.param("os._exit(0)", "the worker ended with code 0; --debug shows more", id="no word at all"),
        pytest.param("sys.exit('first\\nlast\\x1b')", r"ended with code 1: 'last\x1b'; --debug", id="words on stderr"),
        pytest.param("sys.exit('x' * 10**6)", "x…x", id="many words on stderr"),
        pytest.param('sys.stdout.write(\'{"type": "Fin\'); sys.exit(0)', "ended with code 0", id="half a message"),
    ],
)
@pytest.mark.parametrize("before", ["", READY, IN_STEP_1], ids=["at start", "when ready", "in step 1"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.every(3)
def test_a_worker_that_dies_is_explained_in_one_line(
    tiny: Path, script: Callable[[str], None], before: str, ending: str, words: str
) -> None:
    script("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n" + before + ending + "\n")
    with pytest.raises(SdcliError) as caught:
        run(task(tiny))
    assert type(caught.value) is SdcliError and words in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("kind", BY_NAME)
def test_a_failure_that_the_worker_names_is_raised_by_that_name(
    tiny: Path, script: Callable[[str], None], kind: str
) -> None:
    script(IN_STEP_1 + f'say(Failed({kind!r}, "what and why", "Traceback of the worker"))\ntime.sleep(600)\n')
    record = RunRecord(task(tiny))
    with pytest.raises(BY_NAME[kind], match=r"^what and why$") as caught:
        run_task(record.task, record, lambda *_: None, lambda *_: None)
    assert type(caught.value) is BY_NAME[kind]
    assert record.traceback == "Traceback of the worker" and record.total_s > 0 and len(record.steps) == 1


def test_a_failure_that_nobody_foresaw_is_echoed_with_care(tiny: Path, script: Callable[[str], None]) -> None:
    script('say(Failed("", "RuntimeError: \\x1b[2J" + "x" * 9999))\ntime.sleep(600)\n')
    with pytest.raises(SdcliError, match=r"^the worker failed: 'RuntimeError: \\x1b\[2Jx+…x+'; --debug shows more$"):
        run(task(tiny))


@pytest.mark.parametrize(
    "error", [SdcliError("disk full"), BrokenPipeError(), OSError(5, "bad"), Interrupted(2)], ids=repr
)
def test_a_run_that_fails_in_the_host_ends_the_worker(
    tiny: Path, script: Callable[[str], None], error: Exception
) -> None:
    def save(*_: object) -> str:
        raise error

    script(IN_STEP_1 + PICTURE)
    with pytest.raises(type(error)) as caught:
        run(task(tiny), save)
    assert caught.value is error


# The ceiling


def test_m9_a_crossing_names_stage_step_footprint_and_ceiling(tiny: Path, script: Callable[[str], None]) -> None:
    script(IN_STEP_1 + "kept = []\nfor _ in range(600):\n    kept.append(b'x' * 2**21)\ntime.sleep(600)\n")
    limit = standing() + 400 * MIB
    with pytest.raises(CeilingCrossed) as caught:
        run(task(tiny, limit, on_limit="kill"))
    message = str(caught.value)
    assert "was crossed in the stage denoise after step 1: footprint " in message and caught.value.exit_code == 137
    assert "the worker was killed; give --mem-limit " in message and message.endswith("MiB or a smaller picture")


def test_m5_a_ceiling_crossed_by_imports_alone_is_will_not_fit(tiny: Path, script: Callable[[str], None]) -> None:
    script("kept = []\nfor _ in range(600):\n    kept.append(b'x' * 2**21)\ntime.sleep(600)\n")
    with pytest.raises(WillNotFit, match="Python and torch alone take more than the ceiling of "):
        run(task(tiny, standing() + 400 * MIB))


def test_near_the_ceiling_the_worker_is_told_to_free_what_it_can(tiny: Path, script: Callable[[str], None]) -> None:
    script(
        IN_STEP_1 + "kept = [b'x' * 2**21 for _ in range(int(job.request.prompt))]\n"
        "while not isinstance(read_message(sys.stdin.buffer), Relieve):\n    pass\n"
        'say(Notice("relieved"))\n' + PICTURE
    )  # fmt: skip
    limit = standing() + WARN_BYTES + 300 * MIB
    record = run(task(tiny, limit, request=replace(REQUEST, prompt=str(325 // 2))))
    assert record.events == [(None, "relieved")] and record.peak_bytes <= limit


def test_m10_a_watchdog_that_fails_stops_the_run_and_says_so(
    tiny: Path, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TreeMeter) -> Memory:
        raise OSError(24, "Too many open files")

    def show(message: Message) -> None:
        if isinstance(message, StepDone):
            monkeypatch.setattr(TreeMeter, "read", fail)

    script(IN_STEP_1 + "time.sleep(600)\n")
    with pytest.raises(SdcliError, match=r"the watchdog failed .*Too many open files.*: the ceiling could not be kept"):
        run(task(tiny), show=show)


@pytest.mark.parametrize("limit_bytes", [1, 50 * MIB, 100 * MIB])
@pytest.mark.parametrize("known", [None, 180 * MIB])
def test_a_tiny_ceiling_is_refused_before_any_worker_starts(
    tiny: Path, no_worker: None, limit_bytes: int, known: int | None
) -> None:
    if known is not None:
        remember_baseline("cpu", known)
    with pytest.raises(WillNotFit, match="Python and torch alone take ") as caught:
        run(task(tiny, limit_bytes))
    assert caught.value.exit_code == 4


def test_what_does_not_fit_once_measured_is_refused_at_once_the_next_time(
    tiny: Path, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(READY + 'say(Notice("a job came"))\n')
    asked = task(tiny, standing() + 30 * MIB)
    record = RunRecord(asked)
    with pytest.raises(WillNotFit, match=r"the stage \w+ needs ") as first:
        run_task(asked, record, lambda *_: None, lambda *_: None)
    assert record.events == [] and remembered_baseline("cpu") == record.baseline_bytes > 0

    monkeypatch.setattr("sdcli.host.watched.Worker", None)
    with pytest.raises(WillNotFit) as second:
        run(asked)
    assert str(second.value) == str(first.value)


def test_making_a_model_relays_progress_and_failure(script: Callable[[str], None], tmp_path: Path) -> None:
    making = (
        'request = hear()\nassert isinstance(request, Synthesize) and request.name == "sd15"\nsay(Progress(1, 2))\n'
    )
    seen: list[int] = []
    script(making + "say(Finished())\ntime.sleep(600)\n")
    make_synthetic("sd15", tmp_path, lambda progress: seen.append(progress.done))
    script(making + 'say(Failed("BadRequest", "no such model"))\n')
    with pytest.raises(BadRequest, match="no such model"):
        make_synthetic("sd15", tmp_path, lambda progress: seen.append(progress.done))
    script(making + "sys.exit(4)\n")
    with pytest.raises(SdcliError, match="ended with code 4"):
        make_synthetic("sd15", tmp_path, lambda progress: seen.append(progress.done))
    assert seen == [1, 1, 1]


# What is remembered between runs


def test_a_memory_that_is_damaged_or_cannot_be_written_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert remembered_baseline("cpu") is None
    remember_baseline("cpu", 200 * MIB)
    remember_baseline("cuda", 400 * MIB)
    assert (remembered_baseline("cpu"), remembered_baseline("cuda"), remembered_baseline("mps")) == (
        200 * MIB, 400 * MIB, None,
    )  # fmt: skip
    file = tmp_path / "cache" / "baseline.json"
    for damage in ("", "[]", "null", "{", "\udcff", file.read_text().replace(str(200 * MIB), '"much"')):
        file.write_text(damage, "utf-8", "surrogateescape")
        assert remembered_baseline("cpu") is None
    file.unlink()
    file.mkdir()
    remember_baseline("cpu", 1)
    assert remembered_baseline("cpu") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "file"))
    remember_baseline("cpu", 1)


# The real worker


def test_a_run_that_goes_on_from_a_checkpoint_draws_the_same_picture(tiny: Path) -> None:
    steps: list[StepDone] = []

    def show(message: Message) -> None:
        if isinstance(message, StepDone):
            steps.append(message)

    saved = Saved()
    run(task(tiny), saved, show)
    halfway = run(task(tiny), saved, resume={0: steps[1].payload})
    assert [step.step for step in steps] == [1, 2, 3, 4] and [step.step for step in halfway.steps] == [3, 4]
    whole, resumed = saved.pixels
    assert whole == resumed and len(whole) == 64 * 64 * 3


@pytest.mark.full
def test_what_is_kept_of_a_run_has_no_pixels_and_until_it_is_drawn_one_checkpoint_of_each_picture(tiny: Path) -> None:
    kept: dict[int, bytes] = {}

    def save(picture: PictureDone, record: RunRecord) -> str:
        kept.update(record.finished)
        return "fox.png"

    record = run(task(tiny, request=replace(REQUEST, count=2)), save)
    assert record.checkpoints == {} and record.finished == {}
    assert [picture.payload for _, picture in record.pictures] == [b"", b""]
    assert {step.payload for step in record.steps} == {b""} and len(record.steps) == 8
    assert sorted(kept) == [0, 1]
    latents_bytes, generator_bytes = 4 * 8 * 8 * 4, 5056
    for blob in kept.values():
        assert len(blob) < latents_bytes + generator_bytes + 1024, "of a finished picture the latents, no history"


@pytest.mark.full
@pytest.mark.parametrize("strength", [None, 0.5])
def test_a_worker_of_its_own_decodes_the_same_pictures(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, strength: float | None
) -> None:
    request = replace(REQUEST, count=3, strength=strength)
    asked = task(tiny, request=request, pixels=b"" if strength is None else bytes(range(256)) * 48)
    together, apart, pids, shown = Saved(), Saved(), set(), []
    first: list[StepDone] = []
    whole = run(asked, together, lambda message: first.append(message) if isinstance(message, StepDone) else None)

    def plan(*arguments: Any) -> Planned:
        planned = make_plan(*arguments)
        return replace(planned, plan=replace(planned.plan, fresh_decode=True))

    monkeypatch.setattr("sdcli.app.means.make_plan", plan)
    record = RunRecord(asked)

    def show(message: Message, watchdog: Watchdog) -> None:
        shown.append(type(message).__name__)
        pids.add(record.worker_pid)

    half = next(step for step in first if step.image == 0)
    record.checkpoints.update({0: half.payload})
    run_task(asked, record, apart, show)
    assert apart.pixels == together.pixels and len(apart.pixels) == 3
    assert len(pids) == 2 and shown.count("Finished") == 2
    assert [stage.name for stage in record.stages] == [stage.name for stage in whole.stages]
    assert all(stage.peak_bytes > record.baseline_bytes / 2 and stage.run_s > 0 for stage in record.stages)
    assert record.peak_bytes >= max(stage.peak_bytes for stage in record.stages)


@pytest.mark.full
def test_the_real_worker_s_failure_comes_with_its_traceback(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    record = RunRecord(task(model))
    Prospect(record.task).plan(0)  # counts it
    shutil.rmtree(model / "unet")
    with pytest.raises(SdcliError, match=r"lacks unet/config\.json"):
        run_task(record.task, record, lambda *_: None, lambda *_: None)
    assert "Traceback (most recent call last)" in record.traceback
