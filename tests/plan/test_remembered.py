"""What runs remember for the next ones: written whole, by one at a time, and never believed beyond reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from sdcli.plan.baselines import remember_baseline, remembered_baseline
from sdcli.plan.remembered import LIMIT_BYTES, change_table, read_table
from sdcli.plan.seconds import Speed
from sdcli.plan.speeds import remember_speed, remembered_speed
from sdcli.units import MIB

SPEED = Speed(1e12, 2e9, 3e9)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    remember_baseline("cpu", 200 * MIB)
    remember_speed("cpu", "fp32", SPEED)
    assert (remembered_baseline("cpu"), remembered_speed("cpu", "fp32")) == (200 * MIB, SPEED)
    return tmp_path / "cache"


def edited(path: Path, value: str) -> None:
    """The same table with another text for its number, or numbers."""
    ((key, number),) = json.loads(path.read_text()).items()
    numbers = "{" + ", ".join(f'"{name}": {value}' for name in number) + "}" if isinstance(number, dict) else value
    path.write_text(f"{{{json.dumps(key)}: {numbers}}}")


ABSURD = ["true", "1", "-1", "0", "NaN", "Infinity", "-Infinity", "1e308", "1e999", '"200"', "[]", "null",
          "9" * 30, "9" * 5000, str(2**63), "[" * 10**4, "1e-320", "{}"]  # fmt: skip


@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_number_is_not_believed_and_is_replaced(cache: Path, value: str) -> None:
    for file in ("baseline.json", "speeds.json"):
        edited(cache / file, value)
    assert (remembered_baseline("cpu"), remembered_speed("cpu", "fp32")) == (None, None)
    remember_baseline("cpu", 210 * MIB)
    remember_speed("cpu", "fp32", SPEED)
    assert (remembered_baseline("cpu"), remembered_speed("cpu", "fp32")) == (210 * MIB, SPEED)


@pytest.mark.parametrize("value", [str(49 * MIB), str(4097 * MIB), f"{200 * MIB}.0", "2e8"])
def test_a_baseline_that_no_machine_has_is_not_believed(cache: Path, value: str) -> None:
    edited(cache / "baseline.json", value)
    assert remembered_baseline("cpu") is None


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to another": lambda path: (path.with_name("other").write_text("{}"), path.symlink_to("other")),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "deep": lambda path: path.write_text('{"a": ' * 10**4),
    "large": lambda path: path.write_text(json.dumps({"x": "x" * LIMIT_BYTES})),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[1]"),
}


@pytest.mark.parametrize("what", REPLACEMENTS)
def test_what_is_no_table_is_an_empty_one(cache: Path, what: str) -> None:
    for file in ("baseline.json", "speeds.json"):
        (cache / file).unlink()
        REPLACEMENTS[what](cache / file)
        assert read_table(file) == {}
    assert (remembered_baseline("cpu"), remembered_speed("cpu", "fp32")) == (None, None)
    remember_baseline("cpu", 210 * MIB)
    remember_speed("cpu", "fp32", SPEED)
    replaced = what != "a folder"
    assert remembered_baseline("cpu") == (210 * MIB if replaced else None)
    assert not list(cache.glob(".*json-*")), "no temporary stays"
    if what == "a link to another":
        assert (cache / "other").read_text() == "{}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_file_is_not_believed(cache: Path) -> None:
    os.chown(cache / "baseline.json", 12345, -1)
    assert remembered_baseline("cpu") is None
    remember_baseline("cpu", 300 * MIB)
    assert remembered_baseline("cpu") == 300 * MIB


def test_no_home_folder_is_nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDCLI_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    remember_baseline("cpu", 200 * MIB)
    assert remembered_baseline("cpu") is None


def test_many_runs_at_once_lose_nothing(cache: Path) -> None:
    code = """
import sys
from sdcli.plan.remembered import change_table
for n in range(20):
    change_table("t.json", lambda table: table | {f"{sys.argv[1]} {n}": n})
"""
    running = [subprocess.Popen([sys.executable, "-P", "-c", code, name]) for name in "abc"]
    while any(process.poll() is None for process in running):
        read_table("t.json")
        time.sleep(0.01)
    assert {process.returncode for process in running} == {0}
    assert len(read_table("t.json")) == 60


def test_a_reader_never_sees_half_a_table(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", fail)
    remember_baseline("cpu", 100 * MIB)
    assert remembered_baseline("cpu") == 200 * MIB and not list(cache.glob(".*json-*"))


def test_a_baseline_is_the_least_of_those_that_differ_by_little_and_else_the_last(cache: Path) -> None:
    for measured, kept in ((210, 210), (203, 203), (205, 203), (190, 190), (194, 190), (195, 195)):
        remember_baseline("cpu", measured * MIB)
        assert remembered_baseline("cpu") == kept * MIB


def test_what_is_known_already_is_not_written_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.plan.remembered._write", None)
    remember_baseline("cpu", 200 * MIB)
    remember_baseline("cpu", 203 * MIB)
    remember_speed("cpu", "fp32", SPEED)
    change_table("baseline.json", dict)


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("no flock")])
def test_without_locks_it_is_remembered_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    remember_baseline("cpu", 100 * MIB)
    assert remembered_baseline("cpu") == 100 * MIB


def test_a_lock_that_another_holds_for_long_is_not_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.plan.remembered.WAIT_S", 0.1)
    with FileLock(cache / ".baseline.json.lock"):
        taken = threading.Thread(target=remember_baseline, args=("cpu", 100 * MIB))
        taken.start()
        taken.join(30)
    assert not taken.is_alive() and remembered_baseline("cpu") == 200 * MIB
