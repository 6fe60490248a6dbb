"""Bytes of many pictures: what is put in comes out, and of many only one is in memory."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli.spool import Spool

MANY, BLOB = 200, 100_000


def blob(picture: int) -> bytes:
    """Some bytes that are of this picture alone."""
    return picture.to_bytes(2, "big") * (BLOB // 2)


def filled() -> tuple[Spool, int]:
    """A spool of many pictures, and the bytes of memory that it takes."""
    tracemalloc.start()
    try:
        spool = Spool()
        for picture in range(MANY):
            spool[picture] = blob(picture)
        return spool, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def all_there(spool: Spool) -> bool:
    """Whether every picture's bytes come out, in any order."""
    return all(spool[picture] == blob(picture) for picture in (*range(MANY), 7, MANY - 1, 0))


def test_of_many_pictures_one_is_in_memory_and_all_come_out() -> None:
    spool, taken = filled()
    assert taken < 4 * BLOB < MANY * BLOB
    assert len(spool) == MANY and sorted(spool) == list(range(MANY)) and all_there(spool)


def test_a_later_state_of_a_picture_takes_the_place_of_the_earlier_one() -> None:
    spool = Spool()
    for picture, state in ((0, b"first"), (0, b"second, longer"), (1, b"one"), (0, b"third"), (2, b"two")):
        spool[picture] = state
    assert dict(spool) == {0: b"third", 1: b"one", 2: b"two"}


def test_a_picture_that_was_taken_out_is_gone() -> None:
    spool = Spool()
    for picture in range(3):
        spool[picture] = blob(picture)
    assert spool.pop(0) == blob(0) and spool.pop(2) == blob(2)
    assert list(spool) == [1] and spool.pop(0, None) is None
    with pytest.raises(KeyError):
        del spool[2]
    spool[5] = b"five"
    assert dict(spool) == {1: blob(1), 5: b"five"}


def test_it_keeps_its_file_in_the_cache_s_folder_or_where_temporary_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    opened = tempfile.TemporaryFile

    def open_(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("dir"))
        return opened(*arguments, **options)

    monkeypatch.setattr("tempfile.TemporaryFile", open_)
    kept_in, absent = tmp_path / "cache", tmp_path / "absent"
    kept_in.mkdir()
    for cache in (kept_in, absent):
        monkeypatch.setenv("SDCLI_CACHE", str(cache))
        assert all_there(filled()[0])
    assert asked == [kept_in, absent, None]
    assert list(kept_in.iterdir()) == [], "the file has no name"


class FullDisk:
    """A file on a disk that is full from the third write on, which puts half of it down or ends in an error."""

    def __init__(self, file: Any, fail: Callable[[Any, bytes], int]) -> None:
        self.writes, self.file, self.fail = 0, file, fail

    def seek(self, offset: int) -> None:
        self.file.seek(offset)

    def read(self, size: int) -> Any:
        return self.file.read(size)

    def close(self) -> None:
        self.file.close()

    def write(self, data: bytes) -> Any:
        self.writes += 1
        return self.file.write(data) if self.writes < 3 else self.fail(self.file, data)


def refuses(_file: Any, _data: bytes) -> int:
    raise OSError(28, "No space left on device")


def half(file: Any, data: bytes) -> int:
    return int(file.write(data[: len(data) // 2]))


@pytest.mark.parametrize("fail", [refuses, half])
def test_on_a_full_disk_they_stay_in_memory(monkeypatch: pytest.MonkeyPatch, fail: Callable[[Any, bytes], int]) -> None:
    opened = tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.TemporaryFile", lambda *_, **options: FullDisk(opened(**options), fail))
    spool, taken = filled()
    assert taken > (MANY - 3) * BLOB and all_there(spool)


def test_where_no_file_can_be_made_they_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", no_file)
    spool, taken = filled()
    assert taken > (MANY - 3) * BLOB and all_there(spool)
