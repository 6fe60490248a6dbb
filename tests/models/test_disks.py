"""Which file systems are memory, by the table of mounts."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sdcli.models.disks import lies_in_memory

Mount = namedtuple("Mount", "mountpoint fstype opts")


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mount]]:
    table = [Mount("/", "ext4", "rw")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: table)
    lies_in_memory.cache_clear()
    yield table
    lies_in_memory.cache_clear()


@pytest.mark.parametrize(
    ("kind", "memory"),
    [("tmpfs", True), ("ramfs", True), ("devtmpfs", True), ("hugetlbfs", True), ("ext4", False), ("btrfs", False),
     ("zfs", False), ("fuse.sshfs", False), ("nfs4", False), ("9p", False), ("squashfs", False), ("overlay", False)],
)  # fmt: skip
def test_by_the_nearest_mount(mounts: list[Mount], tmp_path: Path, kind: str, memory: bool) -> None:
    (tmp_path / "ram" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "ram")
    mounts.append(Mount(str(tmp_path / "ram"), kind, "rw,size=1g"))
    assert lies_in_memory(tmp_path / "ram" / "below" / "file") is memory
    assert lies_in_memory(tmp_path / "link" / "file") is memory
    assert not lies_in_memory(tmp_path / "file")
    mounts.append(Mount(str(tmp_path / "ram" / "below"), "xfs", "rw"))
    lies_in_memory.cache_clear()
    assert not lies_in_memory(tmp_path / "ram" / "below" / "file")


def test_an_overlay_is_memory_where_its_upper_layer_is(mounts: list[Mount], tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper" / "written").touch()
    mounts.append(Mount(str(tmp_path / "upper"), "tmpfs", "rw"))
    mounts.append(Mount(str(tmp_path / "merged"), "overlay", f"rw,lowerdir=/l,upperdir={tmp_path}/upper,workdir=/w"))
    assert lies_in_memory(tmp_path / "merged" / "written")
    assert not lies_in_memory(tmp_path / "merged" / "of the lower layer")
    mounts[1] = Mount(str(tmp_path / "upper"), "ext4", "rw")
    lies_in_memory.cache_clear()
    assert not lies_in_memory(tmp_path / "merged" / "written")


def test_without_a_table_of_mounts_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [])
    lies_in_memory.cache_clear()
    assert not lies_in_memory(Path("/anywhere"))
