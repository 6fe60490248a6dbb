"""job.json: whatever a task has survives the way into a run's folder and back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from sdcli.app.own_files import require_own_folder
from sdcli.app.record import RunRecord, Task, Wanted
from sdcli.app.run_file import Maker, RunFile, read_run_file, run_file_of
from sdcli.app.runs import LOCK, RUN_FILE
from sdcli.app.typed import Untrue, from_plain, to_plain
from sdcli.domain import Model, Request, Sources
from sdcli.errors import SdcliError
from sdcli.images.masks import Canvas
from sdcli.images.read import Edit
from sdcli.images.write import Destination
from tests.host.conftest import task

WANTED = Wanted(Destination("outputs", (), ".png", force=False, made=True), keep_text=True, working_folder="/home/me")

NAMES = {"Canvas": Canvas, "Edit": Edit, "Destination": Destination}


def other(kind: Any, at: int) -> Any:
    """A value of the type that is no default: another one for each `at`."""
    origin, kinds = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, localns=NAMES)
        return kind(**{f.name: other(hints[f.name], at + i) for i, f in enumerate(dataclasses.fields(kind))})
    if origin in (Union, types.UnionType):
        return other(next(one for one in kinds if one is not type(None)), at)
    if origin is Literal:
        return kinds[-1]
    if origin is tuple:
        return tuple(other(one, at) for one in (kinds[:1] * 2 if kinds[-1] is Ellipsis else kinds))
    if origin is not None and issubclass(origin, Mapping):
        return {f"name {at}": other(kinds[1], at)}
    values = {int: 8 + at, float: 0.5 + at, str: f'text {at} 🦊\n"\u202e', bool: True, bytes: b"bytes %d" % at}
    return values[kind]


@pytest.mark.parametrize("kind", [Request, Sources, Edit, Destination, Wanted, Maker])
def test_every_field_survives_the_way_there_and_back(kind: type[Any]) -> None:
    before = other(kind, 1)
    plain = json.loads(json.dumps(to_plain(before, {})))
    assert from_plain(kind, plain, {}, NAMES) == before
    assert all(plain[field.name] is not None for field in dataclasses.fields(kind))


def saved(record: RunRecord, folder: Path) -> Path:
    """The run's folder, in `folder`."""
    folder.mkdir(mode=0o700, parents=True)
    table, blobs = run_file_of(record)
    (folder / RUN_FILE).write_text(json.dumps(table))
    (folder / LOCK).write_bytes(b"")
    for name, data in blobs.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def whole(tiny: Path) -> Task:
    """A task in which every field has a value that is not its default."""
    hints = get_type_hints(Task, localns=NAMES)
    named = {field.name: field for field in dataclasses.fields(Task)}
    fixed = {"model", "request", "device", "dtype", "pixels", "mask", "references", "canvas"}
    asked = task(tiny, 2**30, replace(other(Request, 1), width=64, height=72, strength=0.5, steps=9, count=3))
    canvas = Canvas(16, 8, bytes(range(128)) * 3, bytes(128), (0, 0, 8, 8), 32)
    asked = replace(asked, pixels=bytes(64 * 72 * 3), mask=bytes(64 * 72), canvas=canvas)
    asked = replace(asked, request=replace(asked.request, canvas=(16, 8), references=((8, 16),)), references=bytes(384))
    free = {name: named[name] for name in named.keys() - fixed}
    others = {name: not f.default if hints[name] is bool else other(hints[name], 3) for name, f in free.items()}
    return replace(asked, **others)


def test_a_task_survives_with_every_field(whole: Task, tmp_path: Path) -> None:
    folder = saved(RunRecord(whole, wanted=WANTED, device="x86, 2 threads"), tmp_path / "run")
    file = read_run_file(folder)
    again = file.task()
    for field in dataclasses.fields(Task):
        before, after = getattr(whole, field.name), getattr(again, field.name)
        if isinstance(before, Model):
            assert (after.ref, after.sources, after.digest) == (before.ref, before.sources, before.digest)
        else:
            assert after == before, field.name
            assert before != field.default, f"{field.name} is not tried"
    assert (file.wanted, file.device, file.maker) == (WANTED, "x86, 2 threads", Maker.here())
    assert file.maker.difference(Maker.here()) is None and file.model_changed(again) is None


def test_another_version_or_machine_and_a_model_that_was_written_to_are_told(tiny: Path, tmp_path: Path) -> None:
    file = read_run_file(saved(RunRecord(task(tiny), wanted=WANTED), tmp_path / "run"))
    assert "drawn with torch '1.0'" in str(replace(file.maker, torch="1.0").difference(file.maker))
    assert "vector units" in str(replace(file.maker, units=("mmx",)).difference(file.maker))
    assert file.model_changed(file.task()) is None
    touched = replace(file, origins=replace(file.origins, stamps=dict(file.origins.stamps) | {"unet/config.json": "1"}))
    assert "'unet/config.json' has been written to since" in str(touched.model_changed(file.task()))
    another = replace(file, origins=replace(file.origins, digest="0"))
    assert "is another one now" in str(another.model_changed(file.task()))


# What is not believed

Change = Callable[[dict[str, Any]], Any]

TAMPERED: dict[str, tuple[Change, str]] = {
    "no schema": (lambda job: job.pop("schema"), "its format 'None' is not known"),
    "another schema": (lambda job: job.update(schema="sdcli.run/99"), "it is of another version of sdcli"),
    "no task": (lambda job: job.pop("task"), "it is no job"),
    "a text for a number": (lambda job: job["task"]["request"].update(steps="9"), "'steps' cannot be '9'"),
    "yes for a number": (lambda job: job["task"]["request"].update(width=True), "'width' cannot be 'True'"),
    "a field too many": (lambda job: job["task"]["request"].update(shell="rm"), "'shell' is not known"),
    "a field too few": (lambda job: job["task"]["request"].pop("seed"), "'seed' is missing"),
    "a huge picture": (lambda job: job["task"]["request"].update(width=10**9), "beyond all bounds"),
    "a huge count": (lambda job: job["task"]["request"].update(count=10**9), "beyond all bounds"),
    "a huge number": (lambda job: job["task"]["request"].update(guidance=10**400), "'guidance' cannot be"),
    "a device that is none": (lambda job: job["task"].update(device="/dev/sda"), "'device' cannot be '/dev/sda'"),
    "a field of the task": (lambda job: job["task"].update(debug=None), "'debug' cannot be 'None'"),
    "bytes from elsewhere": (lambda job: job["task"]["pixels"].update(file="../../secret"), "no file of the folder"),
    "bytes of another length": (lambda job: job["task"]["pixels"].update(size_bytes=3), "it is too large"),
    "bytes of another sum": (lambda job: job["task"]["pixels"].update(sha256="0"), "init.rgb is damaged"),
    "no bytes": (lambda job: job["task"].update(pixels=None), "its init has 0 bytes"),
    "a name that leads out": (
        lambda job: job["wanted"]["destination"].update(names=["../x.png"]),
        "its place for pictures is none",
    ),
    "a name with a control character": (
        lambda job: job["wanted"]["destination"].update(folder="a\x1b[2J"),
        "its place for pictures is none",
    ),
    "a suffix that is none": (lambda job: job["wanted"]["destination"].update(suffix=".py"), "its place for pictures"),
    "a place that is relative": (lambda job: job["wanted"].update(working_folder="."), "its place for pictures"),
}


@pytest.mark.parametrize(("change", "words"), TAMPERED.values(), ids=TAMPERED)
def test_a_job_that_was_tampered_with_is_refused_in_one_line(
    tiny: Path, tmp_path: Path, change: Change, words: str
) -> None:
    request = replace(other(Request, 1), width=64, height=64, strength=0.5, steps=9, count=1)
    asked = task(tiny, request=replace(request, references=(), masked=False, canvas=None), pixels=bytes(64 * 64 * 3))
    folder = saved(RunRecord(asked, wanted=WANTED), tmp_path / "run")
    table = json.loads((folder / RUN_FILE).read_text())
    change(table)
    (folder / RUN_FILE).write_text(json.dumps(table))
    with pytest.raises(SdcliError) as caught:
        read_run_file(folder).task()
    message = str(caught.value)
    assert words in message and message.isprintable() and len(message) < 350 and "sdcli runs remove run" in message
    assert not isinstance(caught.value, Untrue)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"schema": NaN}', b" " * 5 * 2**20]
)
def test_what_is_no_job_is_refused_in_one_line(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / RUN_FILE).write_bytes(raw)
    with pytest.raises(SdcliError, match="cannot be gone on with: "):
        read_run_file(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="links and owners of Unix")
def test_links_pipes_and_what_is_another_user_s_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(RunRecord(task(tiny), wanted=WANTED), tmp_path / "run")
    require_own_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PermissionError):
        require_own_folder(tmp_path / "link")
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        require_own_folder(folder)
    folder.chmod(0o700)
    os.rename(folder / RUN_FILE, tmp_path / "job.json")
    (folder / RUN_FILE).symlink_to(tmp_path / "job.json")
    with pytest.raises(SdcliError, match="cannot be gone on with"):
        read_run_file(folder)
    (folder / RUN_FILE).unlink()
    os.mkfifo(folder / RUN_FILE)
    with pytest.raises(SdcliError, match="not a file of this user's"):
        read_run_file(folder)
    (folder / RUN_FILE).unlink()
    os.rename(tmp_path / "job.json", folder / RUN_FILE)
    assert isinstance(read_run_file(folder), RunFile)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SdcliError, match="not a file of this user's"):
        read_run_file(folder)
    with pytest.raises(PermissionError):
        require_own_folder(folder)
