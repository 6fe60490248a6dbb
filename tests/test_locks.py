"""A lock of one process at a time, and file systems that have none."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from sdcli.locks import Held, lock


def test_who_comes_second_is_told_until_the_first_releases_it(tmp_path: Path) -> None:
    held = lock(tmp_path / "lock")
    for wait_s in (0, 0.01):
        with pytest.raises(Held, match="lock"):
            lock(tmp_path / "lock", wait_s)
    held.release()
    lock(tmp_path / "lock", 0).release()


@pytest.mark.skipif(sys.platform == "win32", reason="locks of Unix")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_locked_otherwise_or_said_to_have_none(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a warning: one that is raised ends the test."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", fail)
    try:
        held = lock(tmp_path / "lock", 0)
    except OSError:
        return
    with pytest.raises(Held):
        lock(tmp_path / "lock", 0)
    held.release()


def test_what_filelock_does_not_implement_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(OSError, match="lock") as caught:
        lock(tmp_path / "lock", 0)
    assert caught.value.errno == errno.ENOTSUP
