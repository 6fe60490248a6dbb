"""A disk's speed is measured with what it must be asked for, or it is not known."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sdcli.models import disk_speed
from sdcli.models.disk_speed import PIECE_BYTES, PIECES, reading_speed

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system tells what its cache holds")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of three pieces, on the disk."""
    monkeypatch.setattr(disk_speed, "PIECE_BYTES", 2**20)
    monkeypatch.setattr(disk_speed, "READ_BYTES", 2**18)
    monkeypatch.setattr(disk_speed, "LEAST_BYTES", 2**21)
    path = tmp_path / "weights"
    with path.open("wb") as opened:
        opened.write(os.urandom(2**20) * 3)
        os.fsync(opened.fileno())
    return path


@linux
def test_what_the_cache_does_not_hold_is_timed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "_is_cached", lambda *_: False)
    seconds = iter(range(1000))
    monkeypatch.setattr(disk_speed.time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(disk_speed, "WHILE_S", 2.5)
    assert reading_speed(file) == 2**20, "a piece a second"


@linux
def test_what_the_cache_holds_says_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.read_bytes()
    with file.open("rb", buffering=0) as opened:
        assert disk_speed._is_cached(opened.fileno(), 2**20)
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)
    assert reading_speed(file) is None


@linux
def test_holes_say_nothing(file: Path) -> None:
    os.truncate(file, 0)
    os.truncate(file, 2**24)
    assert reading_speed(file) is None


def test_it_is_not_known_of_what_is_too_short_or_gone_nor_on_other_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "short").write_bytes(b"x" * 1000)
    assert reading_speed(tmp_path / "short") is None and reading_speed(tmp_path / "gone") is None
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert reading_speed(tmp_path / "short") is None


def test_little_is_read() -> None:
    assert PIECES * PIECE_BYTES < 2**28
