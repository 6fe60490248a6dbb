"""sdcli resume and sdcli runs: a run that was ended goes on, and what cannot go on is refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.app import resume as resuming
from sdcli.app import unfinished
from sdcli.app.folder import RunFolder
from sdcli.app.record import RunRecord, Wanted
from sdcli.app.run_file import Maker, run_file_of
from sdcli.app.runs import RUN_FILE
from sdcli.app.unfinished import sweep
from sdcli.cli.main import run
from sdcli.domain import Hires, Request
from sdcli.images.write import Destination
from sdcli.settings import cache_dir
from tests.app.conftest import script
from tests.cli.conftest import Command
from tests.host.conftest import task
from tests.kills import Killing, pictures_in

__all__ = ["script"]

FOUR = Request("a red \x1b[31mfox", "", 64, 64, 4, 7.5, 11, 4)

WORKER = r"""
import re
say(Ready("a script", "2.0"))
job = hear()
print(job.part, job.saved, job.checkpoints, job.payload, file=open("jobs", "a"))
ends = {"whole": ("LATENTS", "PICTURES"), "latents": ("LATENTS",), "pictures": ("PICTURES",)}[job.part]
at = [int(one) for one in re.findall(rb"latents[|](\d)", job.payload)]
images = at if job.part == "pictures" else [image for image in range(job.request.count) if image not in job.saved]
if "LATENTS" in ends:
    say(StageBegan("denoise"))
    for image in images:
        say(LatentsDone(image, b"latents|%d" % image))
    say(StageEnded("denoise", 1.0))
if "PICTURES" in ends:
    say(StageBegan("decode"))
    for image in images:
        say(PictureDone(image, job.request.seed + image, 64, 64, bytes([image]) * 64 * 64 * 3))
    say(StageEnded("decode", 1.0))
say(Finished())
sys.stdin.buffer.read()  # until its host has gone
"""


@pytest.fixture
def work(own_home: None) -> Path:
    """The folder that the test runs in."""
    return Path.cwd()


@pytest.fixture
def left(tiny: Path, work: Path) -> Callable[..., Path]:
    """Leaves the folder of a dead run of four pictures, and what it had put there."""

    def leave(*, output: Destination | None = None, request: Request = FOUR, **files: bytes) -> Path:
        place = output or Destination("outputs", (), ".png", force=False, made=True)
        record = RunRecord(task(tiny, request=request), wanted=Wanted(place, True, str(work)), device="a script")
        folder = RunFolder()
        folder.describe(*run_file_of(record))
        for name, data in files.items():
            kind, _, number = name.rpartition("_")
            if kind in ("latents", "checkpoint"):
                (folder.latents if kind == "latents" else folder.checkpoints)[int(number)] = data
            else:
                folder.write(f"{kind}-{number}", data)
        path = folder.path
        assert path is not None
        folder._aside = True
        folder.close(finished=False)
        return path

    return leave


def folders() -> list[Path]:
    return sorted((cache_dir() / "runs").glob("*"))


def names(work: Path) -> list[str]:
    return sorted(path.name for path in work.glob("outputs/*"))


# What is left to do, and nothing else


def test_what_is_saved_stays_and_what_is_denoised_is_only_decoded(
    left: Callable[..., Path], work: Path, script: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    path = left(saved_0=b'"outputs/x.png"', latents_1=b"latents|1", checkpoint_2=b"step|2", unplaced_3=b"")
    script("sys.exit(1)")
    assert run(["resume", "--json"]) == 1
    capfd.readouterr()
    script(WORKER)
    assert folders() == [path]
    assert run(["resume", "--json"]) == 0
    out, err = capfd.readouterr()
    assert err.startswith(f"going on with {path.name}: picture 3 of 4\n")
    assert Path("jobs").read_text().splitlines()[-1] == f"whole (0,) (9, 6) {b'latents|1step|2'}"
    images = json.loads(out)["images"]
    assert [image["seed"] for image in images] == [11, 12, 13, 14] and images[0]["path"] == "outputs/x.png"
    assert names(work) == [f"a-red-31mfox-{seed}.png" for seed in (12, 13, 14)] and folders() == []


def test_where_all_is_denoised_nothing_is_denoised_again(
    left: Callable[..., Path], work: Path, script: Callable[[str], None]
) -> None:
    left(**{f"latents_{image}": b"latents|%d" % image for image in range(4)})
    script(WORKER)
    assert run(["resume", "-q"]) == 0
    assert Path("jobs").read_text().split()[0] == "pictures" and len(names(work)) == 4


def test_what_goes_on_has_a_page_too(left: Callable[..., Path], work: Path, script: Callable[[str], None]) -> None:
    path = left(latents_1=b"latents|1")
    script(WORKER)
    assert run(["resume", path.name, "-q", "--report", "fox.html", "--plot", "fox.png"]) == 0
    page = (work / "fox.html").read_text("utf-8")
    assert f"<pre>sdcli resume {path.name} -q --report fox.html" in page and page.count("data:image/jpeg") == 4


def test_where_all_is_saved_nothing_is_done(left: Callable[..., Path], sdcli: Command) -> None:
    path = left(**{f"saved_{image}": b"null" for image in range(4)})
    outcome = sdcli("resume", path.name[:-3])
    assert outcome.code == 0 and "all pictures are saved" in outcome.err and folders() == []


def test_a_picture_that_was_placed_as_the_run_was_killed_is_not_placed_twice(
    left: Callable[..., Path], work: Path, script: Callable[[str], None]
) -> None:
    script(WORKER)
    left()
    assert run(["resume", "-q"]) == 0
    whole = {name: (work / "outputs" / name).read_bytes() for name in names(work)}
    left(saved_0=b"", saved_1=b"", placing_2=b"", latents_2=b"latents|2", latents_3=b"latents|3")
    (work / "outputs" / "a-red-31mfox-14.png").write_bytes(b"somebody else's")
    assert run(["resume", "-q"]) == 0
    assert names(work) == sorted([*whole, "a-red-31mfox-14-2.png"])
    assert (work / "outputs" / "a-red-31mfox-14.png").read_bytes() == b"somebody else's"
    assert (work / "outputs" / "a-red-31mfox-13.png").read_bytes() == whole["a-red-31mfox-13.png"]


def test_what_is_given_anew_goes_before_what_the_run_had(
    left: Callable[..., Path], work: Path, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    left(output=Destination("gone", ("x-1.png", "x-2.png", "x-3.png", "x-4.png"), ".png", force=False), saved_1=b"null")
    script(WORKER)
    assert run(["resume", "-q"]) == 1, "the folder is missing"
    (work / "fox-3.png").write_bytes(b"")
    assert run(["resume", "-q", "-o", "fox.png"]) == 1, "a file is there"
    assert len(folders()) == 1
    assert run(["resume", "-q", "-o", "fox.png", "--force", "--mem-limit", "none"]) == 0
    assert sorted(path.name for path in work.glob("*.png")) == ["fox-1.png", "fox-3.png", "fox-4.png"]


def test_from_another_folder_the_pictures_go_where_they_would_have_gone(
    left: Callable[..., Path],
    work: Path,
    script: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    left(saved_0=b"null", saved_1=b"null")
    script(WORKER)
    monkeypatch.chdir(tmp_path)
    assert run(["resume", "-q"]) == 0
    assert names(work) == ["a-red-31mfox-13.png", "a-red-31mfox-14.png"] and not (tmp_path / "outputs").exists()


# What does not go on


def test_with_nothing_unfinished_one_line_says_so(sdcli: Command) -> None:
    sdcli("resume").refused(1, "no run is unfinished")
    sdcli("resume", "2026").refused(1, "no run '2026': sdcli runs list")
    sdcli("resume", "../../etc").refused(1, "no run '../../etc'")
    assert (sdcli("runs").out, sdcli("runs").err) == ("", "no run is unfinished\n")
    assert json.loads(sdcli("runs", "list", "--json").out)["runs"] == []


def test_a_name_that_several_have_is_none(left: Callable[..., Path], sdcli: Command) -> None:
    left(), left()
    sdcli("resume", "20").refused(2, "2 runs begin with '20': give more of it")


HOLDER = """
import sys
from pathlib import Path
from sdcli.app.runs import hold
assert hold(Path(sys.argv[1])) is not None
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(path: Path) -> Iterator[subprocess.Popen[str]]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="locks of Unix")
def test_two_on_one_run_refuse_each_other_until_the_holder_is_dead(
    left: Callable[..., Path], sdcli: Command, work: Path
) -> None:
    path = left(latents_0=b"latents|0")
    with held_by_another(path):
        sdcli("resume", path.name).refused(1, "goes on in another process")
        sdcli("resume").refused(1, "no run is unfinished")
        sdcli("runs", "remove", path.name).refused(1, "goes on in another process: end that first")
        assert sdcli("runs").out.endswith("under way\n")
    assert "removed" in sdcli("runs", "remove", "--all").err and folders() == []


@pytest.mark.parametrize("given", [[], ["--anyway"]], ids=["refused", "anyway"])
def test_another_version_is_refused_and_goes_on_anyway(
    left: Callable[..., Path],
    script: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    given: list[str],
) -> None:
    left()
    here = Maker.here()
    monkeypatch.setattr(resuming.Maker, "here", lambda: replace(here, torch="9.9"))
    script(WORKER)
    assert run(["resume", *given]) == (0 if given else 1)
    err = capfd.readouterr().err
    assert f"other bits may come of it: it was drawn with torch '{here.torch}', this is '9.9'" in err
    assert ("--anyway goes on all the same" in err) == (not given)


def test_another_number_of_threads_is_refused(
    left: Callable[..., Path], script: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    path = left()
    script(WORKER.replace('"a script"', '"a script, 3 threads"'))
    assert run(["resume"]) == 1
    err = capfd.readouterr().err
    assert "it was drawn on 'a script', this is 'a script, 3 threads'; --anyway goes on all the same" in err
    assert folders() == [path] and run(["resume", "-q", "--anyway"]) == 0


def test_a_model_that_was_written_to_is_refused(tiny: Path, left: Callable[..., Path], sdcli: Command) -> None:
    path = left()
    job = json.loads((path / RUN_FILE).read_text())
    job["task"]["model"]["stamps"]["unet/config.json"] = "1 2 3 4"
    (path / RUN_FILE).write_text(json.dumps(job))
    sdcli("resume").refused(1, "the model's file 'unet/config.json' has been written to since; --anyway")


def test_a_damaged_checkpoint_is_none_and_the_picture_is_begun_anew(
    left: Callable[..., Path], work: Path, script: Callable[[str], None]
) -> None:
    path = left(latents_0=b"latents|0", checkpoint_1=b"step|1")
    for name in ("latents-0", "checkpoint-1"):
        (path / name).write_bytes((path / name).read_bytes()[:-1])
    (path / "latents-2").write_bytes(b"")
    (path / "latents-3").symlink_to(path / RUN_FILE)
    (path / "latents-99").write_bytes(b"x")
    script(WORKER)
    assert run(["resume", "-q"]) == 0
    assert Path("jobs").read_text() == "whole () () b''\n" and len(names(work)) == 4


def test_a_run_whose_checkpoint_is_damaged_is_not_said_to_go_on(
    left: Callable[..., Path], script: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    left(checkpoint_0=b"step|2")
    failed = "say(Failed('CheckpointDamaged', 'a checkpoint is damaged: draw anew'))"
    script(f"say(Ready('a script', '2.0'))\nhear()\n{failed}")
    assert run(["resume"]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == "Error: a checkpoint is damaged: draw anew"


# sdcli runs


def test_runs_are_listed_shown_and_removed(left: Callable[..., Path], sdcli: Command) -> None:
    first, second = left(saved_0=b"null", latents_1=b"x"), left(request=replace(FOUR, prompt="x" * 99, count=1))
    lines = sdcli("runs", "list").out.splitlines()
    assert len(lines) == 2
    (line,) = [line for line in lines if line.startswith(first.name)]
    assert "picture 3 of 4" in line and "just now" in line and line.endswith(r"a red \x1b[31mfox") and " KiB" in line
    assert next(line for line in lines if line.startswith(second.name)).endswith("x" * 47 + "…")
    shown = sdcli("runs", "show", first.name).out
    assert f"{first.name}: picture 3 of 4, 1 of 4 saved" in shown and r"\x1b[31m" in shown and "to outputs" in shown
    table = json.loads(sdcli("runs", "show", first.name, "--json").out)
    assert (table["saved"], table["denoised"], table["picture"], table["step"]) == (1, 2, 3, None)
    assert table["request"]["prompt"] == FOUR.prompt and table["schema"] == "sdcli.runs/1"
    sdcli("runs", "remove").refused(2, "which runs")
    assert f"removed {first.name}" in sdcli("runs", "remove", first.name).err and folders() == [second]


def test_the_step_is_told_of_the_steps_of_its_round(left: Callable[..., Path], sdcli: Command) -> None:
    def shown(step: object, number: int) -> str:
        plain = json.dumps([0, step, number, {}]).encode()
        header = json.dumps({"plain": {"dtype": "U8", "shape": [len(plain)], "data_offsets": [0, len(plain)]}}).encode()
        twice = replace(FOUR, count=1, hires=Hires(128, 128, 9, 0.7))
        path = left(request=twice, checkpoint_0=len(header).to_bytes(8, "little") + header + plain)
        return sdcli("runs", "show", path.name).out.splitlines()[0]

    assert "step 2 of 4," in shown(2, 0) and "step 7 of 9," in shown(7, 1)
    assert not any("step" in shown(*never) for never in ((10**9, 0), (-3, 0), (17, 0), ("a", 0), (1, 2)))


def test_where_pictures_go_is_shown_with_their_names(left: Callable[..., Path], sdcli: Command) -> None:
    one, four = (
        Destination("", ("a.png",), ".png", force=False),
        Destination("x", tuple(f"a-{number}.png" for number in range(1, 5)), ".png", force=False),
    )
    assert "\n  to a.png\n" in sdcli("runs", "show", left(output=one, request=replace(FOUR, count=1)).name).out
    assert f"\n  to {os.path.join('x', 'a-1.png')} … a-4.png\n" in sdcli("runs", "show", left(output=four).name).out


def test_a_run_of_another_version_is_told_and_not_passed_over(left: Callable[..., Path], sdcli: Command) -> None:
    path = left(latents_0=b"x")
    told = json.loads((path / RUN_FILE).read_text())
    (path / RUN_FILE).write_text(json.dumps(told | {"schema": "sdcli.run/99"}))
    listed = sdcli("runs", "list")
    assert (listed.code, listed.out.strip()) == (0, "") and f"sdcli runs remove {path.name} takes it away" in listed.err
    sdcli("resume").refused(1, "it is of another version of sdcli", f"sdcli runs remove {path.name}")
    assert sdcli("runs", "remove", path.name).code == 0 and folders() == []


def test_a_run_is_said_to_go_and_goes_a_day_later(left: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path, told = left(latents_0=b"x"), list[str]()
    now = time.time()

    def in_days(days: float) -> list[Path]:
        monkeypatch.setattr(unfinished.time, "time", lambda: now + days * 86400)
        sweep(told.append)
        return folders()

    assert in_days(10) == [path] and told == []
    assert in_days(15) == [path] and len(told) == 1 and f"sdcli resume {path.name}" in told[0]
    assert in_days(15.5) == [path] and len(told) == 1
    assert in_days(16.1) == [] and len(told) == 1


def test_a_finished_run_that_was_killed_before_it_cleared_away_is_swept(left: Callable[..., Path]) -> None:
    left(**{f"saved_{image}": b"null" for image in range(4)})
    assert len(folders()) == 1
    sweep()
    assert folders() == []


@pytest.mark.parametrize("command", ["resume", "runs list", "runs remove"])
def test_what_a_killed_run_left_beside_its_pictures_goes_with_it(
    left: Callable[..., Path], work: Path, command: str, sdcli: Command
) -> None:
    """Under a name that says whose it was: those of other processes stay."""
    path = left(**{f"saved_{image}": b"null" for image in range(4)})
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (path / "lock").write_text(str(dead.pid))
    (work / "outputs").mkdir()
    kept, gone = (work / "outputs" / f".sdcli-{pid}-0123456789ab.tmp" for pid in (os.getpid(), dead.pid))
    kept.write_bytes(b"x")
    gone.write_bytes(b"x")
    sdcli(*command.split(), *([path.name] if command.endswith("remove") else []))
    assert folders() == [] and kept.exists() and not gone.exists()


# The real worker, killed


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("who", ["host", "worker"])
@pytest.mark.every(2)
def test_a_run_that_was_killed_is_resumed_with_the_same_bytes(tiny: Path, tmp_path: Path, who: str) -> None:
    killing = Killing(tmp_path, tiny, "count 4")
    killing.timed("whole")
    whole = pictures_in(tmp_path / "whole")
    assert killing.killed("killed", who, 0.5)
    assert killing.resumed("killed") == whole and len(whole) == 4
