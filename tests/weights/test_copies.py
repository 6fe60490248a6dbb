"""Where a prepared copy goes: one place for each model, type, processor and torch, and never where it would hurt."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdcli import machine
from sdcli.domain import Model
from sdcli.errors import BadRequest, SdcliError
from sdcli.models.opened import open_model
from sdcli.units import GIB, MIB
from sdcli.weights import copies as prepared
from sdcli.weights.copies import (
    INDEX,
    LEFT_FREE_BYTES,
    WEIGHTS,
    in_use,
    is_made,
    outdated,
    sweep,
    unfinished,
)
from sdcli.weights.copies import (
    place_of_copy as copy_of_part,
)

Usage = namedtuple("Usage", "total used free")
SIZE = (64, 64)


def place_of_copy(model: Model, device: Any, dtype: Any, size: tuple[int, int]) -> Path | None:
    """Of the denoiser's copy, for latents of this size."""
    nbytes = sum(origin.numel * 2 for origin in model.parts["unet"].weights().values())
    return copy_of_part(model.parts["unet"], device, dtype, machine.cpu_packs_for(*size, dtype), nbytes)


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that packs, with an empty cache on a disk with room."""
    monkeypatch.setattr(machine, "cpu_packs_weights", lambda dtype: True)
    monkeypatch.setattr(prepared, "lies_in_memory", lambda path: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 100 * GIB))
    monkeypatch.setenv("SDCLI_CACHE", str(tmp_path / "cache"))


def test_each_model_type_processor_and_torch_has_its_own_place(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model("m", tiny)
    place = place_of_copy(model, "cpu", "bf16", SIZE)
    assert place is not None and place.is_relative_to(tmp_path / "cache" / "prepared")
    assert place_of_copy(open_model("another name", tiny), "cpu", "bf16", SIZE) == place

    other = tmp_path / "model"
    shutil.copytree(tiny, other)
    touched = tmp_path / "touched"
    shutil.copytree(tiny, touched)
    before = place_of_copy(open_model("m", touched), "cpu", "bf16", SIZE)
    weights = next((touched / "unet").glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    places = {
        place,
        place_of_copy(model, "cpu", "fp32", SIZE),
        place_of_copy(open_model("m", other), "cpu", "bf16", SIZE),
    }
    places |= {before, place_of_copy(open_model("m", touched), "cpu", "bf16", SIZE)}
    monkeypatch.setattr(machine, "torch_version", lambda: "9.9")
    places.add(place_of_copy(model, "cpu", "bf16", SIZE))
    monkeypatch.setattr(machine, "cpu_vector_flags", lambda: ["avx9"])
    places.add(place_of_copy(model, "cpu", "bf16", SIZE))
    monkeypatch.setattr(machine, "cpu_packs_for", lambda height, width, dtype: (1, height, width))
    places |= {place_of_copy(model, "cpu", "bf16", size) for size in ((48, 64), (64, 48))}
    monkeypatch.setattr(machine, "cpu_packs_for", lambda height, width, dtype: (2, 64, 64))
    assert place_of_copy(model, "cpu", "bf16", (48, 64)) == place_of_copy(model, "cpu", "bf16", (64, 48))
    assert len(places) == 9 and None not in places


def test_there_is_none_where_it_would_not_help_or_would_hurt(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model("m", tiny)
    assert place_of_copy(model, "cuda", "fp16", SIZE) is None
    assert place_of_copy(model, "mps", "fp16", SIZE) is None
    with monkeypatch.context() as patch:
        patch.setattr(machine, "cpu_packs_weights", lambda dtype: dtype == "fp32")
        assert place_of_copy(model, "cpu", "bf16", SIZE) is None
        assert place_of_copy(model, "cpu", "fp32", SIZE) is not None
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, LEFT_FREE_BYTES))
        assert place_of_copy(model, "cpu", "bf16", SIZE) is None
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "lies_in_memory", lambda path: True)
        assert place_of_copy(model, "cpu", "bf16", SIZE) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert place_of_copy(model, "cpu", "bf16", SIZE) is None
    place = place_of_copy(model, "cpu", "bf16", SIZE)
    assert place is not None
    place.mkdir(parents=True)
    for name in (WEIGHTS, INDEX):
        (place / name).touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    assert place_of_copy(model, "cpu", "bf16", SIZE) == place, "one that is there needs no room"


def test_a_model_that_has_gone_has_no_copy(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    model = open_model("m", tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert place_of_copy(model, "cpu", "bf16", SIZE) is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prepared"


def copy_at(root: Path, key: int, size_bytes: int = 0, age_s: float = 0, who: str = "model") -> Path:
    """A copy that was used so long ago, as far as the host can tell one."""
    folder = root / who / f"fp32-{key:016x}"
    folder.mkdir(parents=True)
    with (folder / WEIGHTS).open("wb") as file:
        file.truncate(size_bytes)
    (folder / INDEX).write_text("{}")
    used = folder.with_name(f"{folder.name}.used")
    used.touch()
    os.utime(used, (time.time() - age_s,) * 2)
    return folder


def test_copies_of_other_sizes_processors_and_models_stay_while_there_is_room(root: Path) -> None:
    ours, *others = [copy_at(root, key, who=who) for key, who in enumerate(("model", "model", "other"))]
    sweep(ours)
    assert all(is_made(folder) for folder in (ours, *others))


def test_beyond_the_cap_those_used_longest_ago_go_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_PREPARED_CAP", "300MiB")
    ours = copy_at(root, 0, 100 * MIB, age_s=9000)
    older, oldest, newer = (copy_at(root, key, 100 * MIB, age, "other") for key, age in ((1, 500), (2, 900), (3, 5)))
    assert outdated(ours) == [oldest]
    monkeypatch.setenv("SDCLI_PREPARED_CAP", "50MiB")
    assert outdated(ours) == [oldest, older, newer], "the one that is needed now stays, whatever its size"
    sweep(ours)
    assert is_made(ours) and sorted(path.name for path in root.rglob("*")) == sorted(
        ["model", ours.name, f"{ours.name}.used", WEIGHTS, INDEX]
    )


def test_the_cap_is_a_share_of_the_disk_if_nobody_says_otherwise(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = copy_at(root, 0, 600 * MIB), copy_at(root, 1, 600 * MIB)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(4 * GIB, 0, 0))
    assert outdated(ours) == [other]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(8 * GIB, 0, 0))
    assert outdated(ours) == []


def test_a_copy_that_nobody_used_for_a_month_goes(root: Path) -> None:
    ours, other = copy_at(root, 0), copy_at(root, 1, age_s=31 * 24 * 3600)
    assert outdated(ours) == [other]
    with in_use(other):
        assert outdated(ours) == []


def test_one_that_another_process_uses_stays_beyond_any_cap(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_PREPARED_CAP", "1MiB")
    ours, used, unused = (copy_at(root, key, 2 * MIB, age_s=99) for key in range(3))
    code = "import sys; from pathlib import Path; from sdcli.weights.copies import in_use\n"
    code += "with in_use(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-P", "-c", code, str(used)], **pipes) as user:
        user.stdout.readline()
        with in_use(used):  # users share it
            sweep(ours)
        assert is_made(ours) and is_made(used) and not unused.exists()
        sweep(ours)
        assert is_made(used)
        user.communicate()
    sweep(ours)
    assert not used.exists()


def test_where_there_are_no_locks_what_was_used_today_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("SDCLI_PREPARED_CAP", "1MiB")
    monkeypatch.setattr("fcntl.flock", fail)
    ours, today, before = (copy_at(root, key, 2 * MIB, age) for key, age in enumerate((0, 3600, 2 * 24 * 3600)))
    sweep(ours)
    assert is_made(ours) and is_made(today) and not before.exists()


def test_half_made_copies_of_the_dead_go_and_of_the_living_and_of_other_machines_stay(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = 2**22 + 1  # above any process id of Linux
    ours = copy_at(root, 0)
    living, left, gone = unfinished(ours, os.getpid()), unfinished(ours, dead), unfinished(ours, dead)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "_machine", lambda: "0123456789abcdef")
        theirs, forgotten = unfinished(ours, dead), unfinished(ours, dead + 1)
    unknown = ours.with_name(f"{ours.name}.{dead}.part")
    for half in (living, left, theirs, forgotten, unknown):
        half.mkdir()
        (half / WEIGHTS).touch()
    for path in (forgotten / WEIGHTS, forgotten):
        os.utime(path, (1, 1))
    sweep(ours)
    assert {half.name for half in root.glob("*/*.part")} == {living.name, theirs.name, unknown.name}
    assert not gone.exists()


def test_nothing_but_copies_is_ever_deleted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_PREPARED_CAP", "1MiB")
    ours = copy_at(root, 0, 2 * MIB)
    others = [root / "model" / name for name in ("fp32-mine", "photos", "fp32-0000000000000001.bak")]
    for other in others:
        other.mkdir()
        (other / WEIGHTS).write_bytes(bytes(2**21))
    sweep(ours)
    assert all(other.is_dir() for other in others)


def test_a_cap_that_is_no_size_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDCLI_PREPARED_CAP", "16")
    with pytest.raises(BadRequest, match="SDCLI_PREPARED_CAP: the size '16' has no unit"):
        place_of_copy(open_model("m", tiny), "cpu", "bf16", SIZE)


def test_no_home_folder_is_no_copy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise SdcliError("this user has no home folder")

    monkeypatch.setattr(prepared.settings, "cache_dir", fail)
    assert place_of_copy(open_model("m", tiny), "cpu", "bf16", SIZE) is None


# What tells the weights that it was made from


def rewritten(path: Path) -> None:
    """The same size and times with one number changed where no sample is taken."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size * 3 // 7)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_in_place(path: Path, how: Callable[[Path, Path], object]) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    rewritten(other)
    how(other, path)


REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "edited in place, touch -r": rewritten,
    "cp -p": lambda path: put_in_place(path, shutil.copy2),
    "mv": lambda path: put_in_place(path, os.replace),
    "rsync": lambda path: put_in_place(path, lambda other, path: (path.unlink(), os.rename(other, path))),
    "a link to another": lambda path: put_in_place(path, lambda other, path: (path.unlink(), path.symlink_to(other))),
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_weights_of_the_same_name_size_and_time_have_a_copy_of_their_own(tiny: Path, tmp_path: Path, how: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    before = place_of_copy(open_model("m", folder), "cpu", "fp32", SIZE)
    (weights,) = (folder / "unet").glob("*.safetensors")
    size, mtime = weights.stat().st_size, weights.stat().st_mtime_ns
    REPLACEMENTS[how](weights)
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (size, mtime)
    assert place_of_copy(open_model("m", folder), "cpu", "fp32", SIZE) not in (before, None)


def test_without_inodes_and_times_of_change_other_weights_are_told_by_their_bytes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdcli.models.header.stamp_of", lambda status: str(status.st_size))
    places = set()
    for name, change in (("one", None), ("same", None), ("other", 9)):
        folder = tmp_path / name
        shutil.copytree(tiny, folder)
        (weights,) = (folder / "unet").glob("*.safetensors")
        if change is not None:
            with weights.open("r+b") as file:
                file.seek(-change, os.SEEK_END)
                file.write(b"?")
        place = place_of_copy(open_model("m", folder), "cpu", "fp32", SIZE)
        assert place is not None
        places.add(place.name)
    assert len(places) == 2
