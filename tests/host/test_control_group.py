"""Control groups as files: what is written, read and removed; and a real one, where this user may make it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli.errors import SdcliError
from sdcli.host import control_group as module
from sdcli.host.control_group import ControlGroup, drop_cached, group_of_run, limited_group
from sdcli.machine import memory_groups
from sdcli.units import MIB

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups")

V2 = ("memory.max", "memory.swap.max", "memory.peak", "memory.events")
V1 = ("memory.limit_in_bytes", "memory.swappiness", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is taken for the group around this process: plain files stand for the kernel's."""
    around = tmp_path / "around"
    around.mkdir()
    monkeypatch.setattr(module, "memory_groups", lambda: iter([tmp_path / "gone", around]))
    return around


def pose_as(monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
    """Let folders that are made have these files, and go with them."""
    mkdir = Path.mkdir

    def make(self: Path) -> None:
        mkdir(self)
        for name in (*files, "cgroup.procs"):
            (self / name).write_text("")

    def remove(self: Path) -> None:
        for file in self.iterdir():
            file.unlink()
        os.rmdir(self)

    monkeypatch.setattr(Path, "mkdir", make)
    monkeypatch.setattr(Path, "rmdir", remove)


@linux
@pytest.mark.parametrize(
    ("files", "written"),
    [
        (V2, {"memory.max": "104857600", "memory.swap.max": "0"}),
        (V2[:1], {"memory.max": "104857600"}),
        (V1, {"memory.limit_in_bytes": "104857600", "memory.swappiness": "0", V1[2]: "104857600"}),
    ],
)
def test_a_group_has_its_limit_and_no_swap_and_is_removed_whatever_happens(
    made: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], written: dict[str, str]
) -> None:
    pose_as(monkeypatch, *files)
    with pytest.raises(ZeroDivisionError), limited_group(100 * MIB) as group:
        assert group == ControlGroup(made / f"sdcli-{os.getpid()}", 100 * MIB)
        assert {name: (group.folder / name).read_text() for name in written} == written
        assert group.processes, "one process has tried to enter"
        raise ZeroDivisionError
    assert list(made.iterdir()) == []


@linux
def test_what_a_killed_sdcli_has_left_is_removed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name in (f"sdcli-{ended.pid}", f"sdcli-{os.getppid()}", "sdcli-other", "other"):
        (made / name).mkdir()
    pose_as(monkeypatch, *V2)
    with limited_group(100 * MIB):
        pass
    assert {path.name for path in made.iterdir()} == {f"sdcli-{os.getppid()}", "sdcli-other", "other"}


@linux
def test_a_plain_folder_is_no_group(made: Path) -> None:
    with pytest.raises(SdcliError) as refused, limited_group(300 * MIB + 1):
        pass
    assert str(refused.value) == (
        "--kernel-limit: this user may make no memory control group here: run systemd-run --user --scope"
        " -p MemoryMax=301M -p MemorySwapMax=0 sdcli … without it, or run as root"
    )
    assert list(made.iterdir()) == []


def test_other_systems_have_none(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SdcliError, match="--kernel-limit needs Linux"), limited_group(MIB):
        pass


@pytest.mark.parametrize(
    ("files", "peak", "kills"),
    [
        ({"memory.peak": "123\n", "memory.events": "low 1\noom 9\noom_kill 2\noom_group_kill 7\n"}, 123, 2),
        ({"memory.max_usage_in_bytes": "456\n", "memory.oom_control": "under_oom 0\noom_kill 1\n"}, 456, 1),
        ({"memory.events": "low 1\n"}, None, 0),
        ({}, None, 0),
    ],
)
def test_peak_and_kills_are_read_as_either_version_tells_them(
    tmp_path: Path, files: dict[str, str], peak: int | None, kills: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    group = ControlGroup(tmp_path)
    assert (group.peak_bytes, group.kills, group.processes) == (peak, kills, set())


def test_the_group_around_counts_where_nobody_else_is_in_it_and_its_peak_rises(made: Path) -> None:
    def around(processes: str, peak: int) -> None:
        (made / "cgroup.procs").write_text(processes)
        (made / "memory.peak").write_text(f"{peak}\n")

    own = f"{os.getpid()}\n"
    around(own, 100)
    with group_of_run(None) as group:
        assert group.joined is None
        around(own, 300)
        assert group.peak_bytes == 300
        around(own + "1\n", 400)
        assert group.peak_bytes is None, "somebody came"
        around(own, 100)
        assert group.peak_bytes is None, "it was as high before"
    around("1\n" + own, 100)
    with group_of_run(None) as group:
        around(own, 300)
        assert group.peak_bytes is None, "somebody was there"


@linux
def test_files_that_are_dropped_or_gone_are_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"x" * MIB)
    drop_cached([tmp_path / "weights", tmp_path / "gone", tmp_path])
    assert (tmp_path / "weights").read_bytes() == b"x" * MIB


GROW = "kept = b'x' * (60 * 2**20); print(len(kept))"


@linux
def test_the_kernel_keeps_the_limit_of_a_real_group() -> None:
    try:
        with limited_group(40 * MIB) as group:
            done = subprocess.run(group.entered([sys.executable, "-c", GROW]), capture_output=True, check=False)
            assert (done.returncode, done.stdout, group.kills) == (-9, b"", 1)
            assert 39 * MIB < (group.peak_bytes or 0) <= 40 * MIB
        assert not group.folder.exists()
        with group_of_run(200 * MIB) as run:
            assert run.joined is not None
            done = subprocess.run(run.joined.entered([sys.executable, "-c", GROW]), capture_output=True, check=False)
            assert (done.returncode, run.joined.kills) == (0, 0)
            assert 60 * MIB < (run.peak_bytes or 0) < 100 * MIB
    except SdcliError as error:
        pytest.skip(str(error))
    assert not any(list(folder.glob(f"sdcli-{os.getpid()}")) for folder in memory_groups())
