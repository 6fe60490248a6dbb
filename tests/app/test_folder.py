"""A run's folder: what must not be lost is in it, of many pictures one in memory; it goes when nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sdcli.app import folder as module
from sdcli.app import own_files, runs, unfinished
from sdcli.app.folder import RunFolder
from sdcli.app.own_files import sealed, unsealed
from sdcli.app.record import RunRecord
from sdcli.app.run import run_task
from sdcli.app.unfinished import sweep
from sdcli.errors import Interrupted, SdcliError
from sdcli.messages import Message, PictureDone, StepDone
from sdcli.settings import cache_dir
from tests.host.conftest import REQUEST, task

MANY, BLOB = 200, 100_000


@pytest.fixture
def folder() -> Iterator[RunFolder]:
    """One that is closed in the end."""
    one = RunFolder()
    yield one
    one.close(finished=True)


def blob(picture: int) -> bytes:
    """Some bytes that are of this picture alone."""
    return picture.to_bytes(2, "big") * (BLOB // 2)


def fill(folder: RunFolder) -> int:
    """Puts latents of many pictures in, and returns the bytes of memory that they take."""
    tracemalloc.start()
    try:
        for picture in range(MANY):
            folder.latents[picture] = blob(picture)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def all_there(folder: RunFolder) -> bool:
    """Whether every picture's bytes come out, in any order."""
    latents = folder.latents
    return len(latents) == MANY and all(latents[one] == blob(one) for one in (*range(MANY), 7, MANY - 1, 0))


def folders() -> list[Path]:
    """Those of all runs."""
    return sorted((cache_dir() / "runs").glob("*"))


# Many pictures


def test_of_many_pictures_one_is_in_memory_and_all_come_out(folder: RunFolder) -> None:
    assert fill(folder) < 4 * BLOB < MANY * BLOB and all_there(folder)
    (path,) = folders()
    assert path == folder.path and path.stat().st_mode & 0o777 == 0o700
    assert {one.name for one in path.iterdir()} == {runs.LOCK, *(f"latents-{picture}" for picture in range(MANY))}


def test_a_later_state_of_a_picture_takes_the_place_of_the_earlier_one(folder: RunFolder) -> None:
    for kept in (folder.checkpoints, folder.latents):
        for picture, state in ((0, b"first"), (0, b"second, longer"), (1, b"one"), (0, b"third"), (2, b"two")):
            kept[picture] = state
        assert dict(kept) == {0: b"third", 1: b"one", 2: b"two"}


def test_a_picture_that_was_taken_out_is_gone(folder: RunFolder) -> None:
    kept = folder.latents
    for picture in range(4):
        kept[picture] = blob(picture)
    kept.drop(3)
    kept.drop(3)
    assert kept.pop(0) == blob(0) and kept.pop(2) == blob(2)
    assert list(kept) == [1] and kept.pop(0, None) is None and 0 not in kept
    with pytest.raises(KeyError):
        del kept[2]
    assert folder.path is not None and {one.name for one in folder.path.iterdir()} == {runs.LOCK, "latents-1"}


def test_a_checkpoint_is_written_now_and_then_and_whenever_another_picture_comes(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, write = [], folder.write
    monkeypatch.setattr(
        folder, "write", lambda name, data, *lasting: written.append((name, unsealed(data))) or write(name, data)
    )
    for step in range(50):
        folder.checkpoints[0] = b"%d" % step
    assert written == [("checkpoint-0", b"0")] and folder.checkpoints[0] == b"49"
    monkeypatch.setattr(module, "CHECKPOINT_S", 0.0)
    folder.checkpoints[1] = b"next"
    assert written[1:] == [("checkpoint-0", b"49")] and dict(folder.checkpoints) == {0: b"49", 1: b"next"}
    folder.checkpoints._written_at -= 1
    folder.checkpoints[1] = b"later"
    assert written[2:] == [("checkpoint-1", b"later")]


# Disks that fail


class FullDisk:
    """A file on a disk that is full, which puts half of what it is given down or ends in an error."""

    def __init__(self, file: Any, fails: bool) -> None:
        self.file, self.fails = file, fails

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        if self.fails:
            raise OSError(28, "No space left on device")
        return int(self.file.write(data[: len(data) // 2]))


@pytest.mark.parametrize("fails", [True, False], ids=["refuses", "takes half"])
def test_on_a_full_disk_they_stay_in_memory(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    opened, files = open, []

    def open_(path: Path, *arguments: Any, **options: Any) -> Any:
        files.append(path)
        file = opened(path, *arguments, **options)
        return file if len(files) < 3 else FullDisk(file, fails)

    monkeypatch.setattr(own_files, "open", open_, raising=False)
    taken = fill(folder)
    assert taken > (MANY - 3) * BLOB and all_there(folder)
    assert len(files) < 2 * MANY, "one try a picture"
    (path,) = folders()
    assert not [one for one in path.iterdir() if one.suffix == ".tmp"]


def test_without_a_cache_they_go_where_temporary_files_go_and_leave_nothing_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = RunFolder()
    assert fill(folder) < 4 * BLOB and all_there(folder)
    folder.close(finished=False)
    assert list((tmp_path / "temporary").iterdir()) == [], "no later run looks there"


def test_where_no_folder_can_be_made_they_stay_in_memory(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    assert fill(folder) > (MANY - 3) * BLOB and all_there(folder)


def test_a_folder_that_somebody_deletes_is_named(folder: RunFolder) -> None:
    fill(folder)
    assert folder.path is not None
    for file in folder.path.iterdir():
        file.unlink()
    with pytest.raises(SdcliError, match=r"the run's own folder '.+' cannot be read: No such file"):
        _ = folder.latents[0]
    folder.latents.drop(0)
    assert folder.latents[MANY - 1] == blob(MANY - 1)


# Its life

SCRIPT = """
say(Ready("a script", "2.0"))
job = hear()
say(StageBegan("denoise"))
say(StepDone(0, 4, 4, 0.1, 0, b"latents 0"))
say(StepDone(1, 1, 4, 0.1, 0, b"step 1 of 1"))
END
say(StepDone(1, 4, 4, 0.1, 0, b"latents 1"))
for image in range(2):
    say(PictureDone(image, 11 + image, 64, 64, b"p"))
say(Finished())
time.sleep(600)
"""
TWO = replace(REQUEST, count=2)


def looks(seen: dict[str, bytes]) -> Callable[..., None]:
    """Looks into the folder when the second picture is begun."""

    def show(message: Message, *_: object) -> None:
        if isinstance(message, StepDone) and message.image == 1 and message.step == 1:
            (path,) = folders()
            seen.update({one.name: one.read_bytes() for one in path.iterdir()})

    return show


def test_a_run_s_folder_has_the_job_and_all_that_is_done_and_goes_with_the_run(
    tiny: Path, script: Callable[[str], None]
) -> None:
    script(SCRIPT.replace("END", ""))
    asked = task(tiny, request=replace(TWO, strength=0.5, masked=True, canvas=(64, 64)), pixels=b"pixels", mask=b"mask")
    seen, record = dict[str, bytes](), RunRecord(replace(asked, references=b"others"))
    run_task(record.task, record, lambda *_: "fox.png", looks(seen))
    assert {name: data for name, data in seen.items() if name != "job.json"} == {
        runs.LOCK: str(os.getpid()).encode(),
        "init.rgb": b"pixels",
        "mask.grey": b"mask",
        "references.rgb": b"others",
        "latents-0": sealed(b"latents 0"),
        "checkpoint-1": sealed(b"step 1 of 1"),
    }
    job = json.loads(seen["job.json"])
    request, model = job["task"]["request"], job["task"]["model"]
    assert job["schema"] == "sdcli.run/2" and request == json.loads(json.dumps(asdict(asked.request)))
    assert model["ref"] == "tiny" and len(model["digest"]) == 64
    assert record.planned is not None and job["plan"]["residency"] == record.planned.plan.residency
    assert folders() == []


@pytest.mark.parametrize("wanted", [True, False])
def test_what_could_not_be_decoded_in_the_end_stays(tiny: Path, script: Callable[[str], None], wanted: bool) -> None:
    script(SCRIPT.replace("END", "sys.exit(3)"))  # the worker that is to decode ends as well
    asked = task(tiny, request=TWO)
    with pytest.raises(SdcliError, match="ended with code 3"):
        run_task(asked, RunRecord(asked), (lambda *_: "fox.png") if wanted else None, lambda *_: None)
    names = {one.name for path in folders() for one in path.iterdir()}
    assert names == ({runs.LOCK, "job.json", "latents-0", "checkpoint-1"} if wanted else set())


@pytest.mark.parametrize("begun", [True, False], ids=["denoising the second", "all denoised"])
def test_of_a_model_that_is_not_finite_only_what_may_be_decoded_stays(
    tiny: Path, script: Callable[[str], None], begun: bool
) -> None:
    failure = "say(Failed('NotFinite', 'NaN came out'))\ntime.sleep(600)"
    script(SCRIPT.replace("END", failure if begun else f"say(LatentsDone(1, b'latents 1'))\n{failure}"))
    asked = task(tiny, request=TWO)
    with pytest.raises(SdcliError, match="NaN came out"):
        run_task(asked, RunRecord(asked), lambda *_: "fox.png", lambda *_: None)
    assert [path.name for one in folders() for path in one.glob("latents-*")] == ["latents-0"] * begun


@pytest.mark.parametrize(
    ("error", "stays"), [(MemoryError(), True), (SdcliError("kept as"), True), (BrokenPipeError(), False)], ids=repr
)
def test_the_latents_of_a_picture_that_is_nowhere_else_stay(
    tiny: Path, script: Callable[[str], None], error: Exception, stays: bool
) -> None:
    def save(picture: PictureDone, _: RunRecord) -> str:
        if picture.image == 0:
            raise error
        return "fox.png"

    script(SCRIPT.replace("END", ""))
    asked = task(tiny, request=TWO)
    with pytest.raises(type(error)):
        run_task(asked, RunRecord(asked), save, lambda *_: None)
    assert [one.read_bytes() for path in folders() for one in path.glob("unplaced-0")] == [sealed(b"latents 0")] * stays
    assert len(folders()) == stays


def test_an_interrupted_run_leaves_what_is_begun_and_which_pictures_are_saved(
    tiny: Path, script: Callable[[str], None]
) -> None:
    def show(message: Message, *_: object) -> None:
        if isinstance(message, StepDone) and message.image == 1:
            raise Interrupted(2)

    decoding = "if job.part == 'pictures':\n    say(PictureDone(0, 11, 64, 64, b'p'))\n"
    decoding += "    say(Finished())\n    time.sleep(600)\n"
    script(SCRIPT.replace("END", "").replace("say(StageBegan", decoding + "say(StageBegan"))
    asked = task(tiny, request=TWO)
    record = RunRecord(asked)
    with pytest.raises(Interrupted):
        run_task(asked, record, lambda *_: "fox.png", show)
    (path,) = folders()
    assert len(record.pictures) == 1 and record.folder.left == path.name
    names = {one.name: one.read_bytes() for one in path.iterdir()}
    assert names.keys() == {runs.LOCK, runs.RUN_FILE, "saved-0", "checkpoint-1"}
    assert names["saved-0"] == b'"fox.png"' and names["checkpoint-1"] == sealed(b"step 1 of 1")


HOLDER = """
import sys
from sdcli.app.folder import RunFolder
from sdcli.app.own_files import sealed, unsealed
folder = RunFolder()
folder.latents[0] = b"latents"
print(folder.path, flush=True)
sys.stdin.read()
"""


def held_by_another() -> tuple[subprocess.Popen[str], Path]:
    """A process with a run's folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def age(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_killed_run_leaves_its_folder_until_it_is_old_and_nobody_deletes_one_in_use() -> None:
    process, path = held_by_another()
    try:
        age(path, 15)
        sweep()
        assert (path / "latents-0").read_bytes() == sealed(b"latents"), "it is in use"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    age(path, 13)
    sweep()
    assert path.is_dir()
    age(path, 15)
    sweep()
    assert folders() == []


def test_dead_runs_together_have_a_cap_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "CAP_BYTES", 2500)
    home = cache_dir() / "runs"
    for days in (1, 3, 2, 4):
        path = home / f"20260101-00000{days}-0000000{days}"
        path.mkdir(parents=True)
        (path / runs.LOCK).write_bytes(b"")
        (path / "latents-0").write_bytes(bytes(1000))
        age(path, days)
    (home / "notes").mkdir()
    age(home / "notes", 99)
    sweep()
    assert [path.name[14:15] for path in folders()] == ["1", "2", ""], "and what is not ours stays"


def test_where_there_are_no_locks_a_folder_of_the_last_day_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(unfinished, "CAP_BYTES", 0)
    folder = RunFolder()
    folder.latents[0] = b"latents"
    sweep()
    assert folder.path is not None and folders() == [folder.path]
    age(folder.path, 2)
    sweep()
    assert folders() == []
    folder.close(finished=True)
