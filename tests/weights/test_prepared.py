"""Prepared copies: whole and the same bits, or none at all."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from sdcli.devices.cpu import CpuDevice
from sdcli.errors import SdcliError
from sdcli.models.header import sampled_sha256
from sdcli.units import MIB
from sdcli.weights.arena import Arena
from sdcli.weights.copies import being_made, in_use, remove, unfinished
from sdcli.weights.opaque import raw_bytes
from sdcli.weights.packed import PackedLinear, can_map, packing_of
from sdcli.weights.prepared import INDEX, WEIGHTS, make_copy, open_copy
from tests.networks import PACKED_DTYPES, anonymous_bytes, numbers

pytestmark = [
    pytest.mark.skipif(not can_map(), reason="packed weights cannot be mapped here"),
]

Pack = Callable[[str], list[torch.Tensor]]


def layers(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """One of each kind."""
    torch.manual_seed(0)
    made = {"conv": nn.Conv2d(24, 40, 3, padding=1), "linear": nn.Linear(32, 48), "gate": GEGLU(32, 48)}
    return {name: layer.requires_grad_(False).to(dtype) for name, layer in made.items()}


def packer(made: dict[str, Any]) -> Pack:
    def pack(name: str) -> list[torch.Tensor]:
        layer = made[name]
        kind = packing_of(layer, CpuDevice(), next(layer.parameters()).dtype)
        assert kind is not None
        return kind.pack(layer, getattr(layer, "proj", layer).weight)

    return pack


def run(layer: Any, weights: list[torch.Tensor]) -> torch.Tensor:
    kind = packing_of(layer, CpuDevice(), next(layer.parameters()).dtype)
    assert kind is not None
    shape = (2, 24, 6, 7) if isinstance(layer, nn.Conv2d) else (2, 9, 32)
    states = numbers(*shape, dtype=next(layer.parameters()).dtype)
    return kind(layer, lambda: weights)(states)


def made_in(folder: Path, pack: Pack | None = None) -> None:
    made = layers()
    make_copy(folder, made, pack or packer(made))


def inode(folder: Path) -> int:
    return (folder / WEIGHTS).stat().st_ino


@pytest.mark.parametrize("dtype", PACKED_DTYPES)
def test_a_copy_gives_the_same_bits_made_and_opened_in_place_and_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    made, folder = layers(dtype), tmp_path / "deep" / "fp32-key"
    expected = {name: run(layer, packer(made)(name)) for name, layer in made.items()}
    copies = [make_copy(folder, made, packer(made)), open_copy(folder)]
    arena = Arena(MIB)
    for copy in copies:
        assert copy is not None
        for name, layer in made.items():
            assert torch.equal(run(layer, copy.weights(name)), expected[name])
            assert torch.equal(run(layer, copy.copied(name, arena)), expected[name])
            assert len(copy.places(name)) == (2 if name == "gate" else 1)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [INDEX, WEIGHTS]


def test_every_weight_begins_at_a_page_of_its_own(tmp_path: Path) -> None:
    made = layers()
    copy = make_copy(tmp_path / "fp32-key", made, packer(made))
    places = [place for name in made for place in copy.places(name)]
    assert all(address % mmap.PAGESIZE == 0 for address, _ in places)
    for (address, nbytes), (following, _) in itertools.pairwise(places):
        assert address + nbytes <= following < address + nbytes + mmap.PAGESIZE
    weights = [weight for name in made for weight in copy.weights(name)]
    assert places == [(torch.ops.mkldnn.data_ptr(one), torch.ops.mkldnn._nbytes(one)) for one in weights]
    assert (tmp_path / "fp32-key" / WEIGHTS).stat().st_size % mmap.PAGESIZE == 0


def test_weights_outlive_the_copy_that_they_lie_in(tmp_path: Path) -> None:
    made = layers()
    expected = run(made["linear"], packer(made)("linear"))
    weights = make_copy(tmp_path / "fp32-key", made, packer(made)).weights("linear")
    shutil.rmtree(tmp_path / "fp32-key")
    assert torch.equal(run(made["linear"], weights), expected)


def truncate(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - mmap.PAGESIZE)


def edit(folder: Path) -> None:
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(b"?")


def edit_index(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "digest": "0" * 64}))


def claim(**what: Any) -> Callable[[Path], None]:
    """An index that tells something else of a weight, with a digest that is right."""

    def edited(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weights"]["linear"][0].update(what)
        with (folder / WEIGHTS).open("rb") as file:
            whole = sampled_sha256(file) + json.dumps(index["weights"])
        (folder / INDEX).write_text(json.dumps({**index, "digest": hashlib.sha256(whole.encode()).hexdigest()}))

    return edited


def another_owner(folder: Path) -> None:
    os.chown(folder / WEIGHTS, 65534, -1)


def replace_by(make: Callable[[Path], object], path: Path) -> None:
    path.unlink()
    make(path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "edited": edit,
    "empty": lambda folder: os.truncate(folder / WEIGHTS, 0),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no index": lambda folder: (folder / INDEX).unlink(),
    "another index": edit_index,
    "half an index": lambda folder: os.truncate(folder / INDEX, 40),
    "an index of nothing": lambda folder: (folder / INDEX).write_text("[]"),
    "an index that is no text": lambda folder: (folder / INDEX).write_bytes(b"\xff\xfe{"),
    "no folder": shutil.rmtree,
    "a deep index": lambda folder: (folder / INDEX).write_text("[" * 10**5),
    "an index that claims too much": claim(nbytes=2**40),
    "a weight before the file": claim(begin=-mmap.PAGESIZE),
    "a weight of no whole place": claim(begin=0.5),
    "a weight of negative length": claim(nbytes=-1),
    "a shape larger than its bytes": claim(shape=[2**40, 32]),
    "a shape of words": claim(shape=["a"]),
    "a type that is none": claim(dtype="torch.uint1"),
    "a description that is none": claim(description="x"),
    **({"another user's": another_owner} if os.geteuid() == 0 else {}),
    "a pipe for an index": lambda folder: replace_by(os.mkfifo, folder / INDEX),
    "a pipe for weights": lambda folder: replace_by(os.mkfifo, folder / WEIGHTS),
    "a folder for weights": lambda folder: replace_by(os.mkdir, folder / WEIGHTS),
    "a file for the folder": lambda folder: (shutil.rmtree(folder), folder.write_text("x")),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_refused_and_made_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "fp32-key"
    made_in(folder)
    DAMAGES[damage](folder)
    assert open_copy(folder) is None
    made_in(folder)
    assert open_copy(folder) is not None
    assert list(tmp_path.glob("*.part")) == []


# Failing to write


def assert_refused(folder: Path, reason: str, pack: Pack | None = None) -> None:
    with pytest.raises(SdcliError, match="cannot prepare the denoiser in") as caught:
        made_in(folder, pack)
    message = str(caught.value)
    assert reason in message and "SDCLI_CACHE" in message and message.isprintable() and len(message) < 500
    assert open_copy(folder) is None and not unfinished(folder, os.getpid()).exists()


@pytest.mark.parametrize("failing", ["conv", "gate"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, failing: str) -> None:
    pack = packer(layers())

    def until_full(name: str) -> list[torch.Tensor]:
        if name == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pack(name)

    assert_refused(tmp_path / "fp32-key", "No space left on device", until_full)
    assert list(tmp_path.glob("fp32-*")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_write_that_the_system_refuses_is_one_line_too(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert_refused(tmp_path / "fp32-key", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.glob("fp32-*")) == []


def test_a_cache_that_is_no_folder_or_read_only_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(tmp_path / "file" / "fp32-key", "Not a directory")
    if os.geteuid() != 0:  # who may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        assert_refused(tmp_path / "closed" / "fp32-key", "Permission denied")


def test_an_error_of_the_packing_leaves_nothing(tmp_path: Path) -> None:
    def fail(name: str) -> list[torch.Tensor]:
        raise KeyError(name)

    with pytest.raises(KeyError):
        made_in(tmp_path / "fp32-key", fail)
    assert list(tmp_path.glob("fp32-*")) == []


# Others


MAKER = """
import shutil, sys
from pathlib import Path
from sdcli.weights.copies import making
made, folder = map(Path, sys.argv[1:])
with making(folder):
    print("making", flush=True)
    sys.stdin.readline()
    shutil.copytree(made, folder)
"""


def maker(tmp_path: Path, folder: Path) -> subprocess.Popen[str]:
    """Another process, which makes a copy in `folder` and has begun; it ends when it is told to."""
    made_in(tmp_path / "elsewhere" / "fp32-key")
    command = [sys.executable, "-P", "-c", MAKER, str(tmp_path / "elsewhere" / "fp32-key"), str(folder)]
    process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "making\n"
    return process


def test_the_second_of_two_makers_waits_and_takes_the_first_one_s_copy(tmp_path: Path) -> None:
    folder, packed = tmp_path / "fp32-key", list[str]()

    def pack(name: str) -> list[torch.Tensor]:
        packed.append(name)
        return packer(layers())(name)

    assert not being_made(folder)
    with maker(tmp_path, folder) as first:
        assert being_made(folder)
        second = threading.Thread(target=make_copy, args=(folder, ["linear"], pack))
        second.start()
        second.join(0.3)
        assert second.is_alive() and packed == []
        first.communicate("go on\n")
        second.join(60)
    assert packed == [] and open_copy(folder) is not None and not being_made(folder)
    assert [path.name for path in tmp_path.glob("fp32-*")] == [folder.name]


def test_a_maker_that_is_waited_for_in_vain_or_killed_is_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fp32-key"
    monkeypatch.setattr("sdcli.weights.copies.WAIT_S", 0.2)
    with maker(tmp_path, folder) as stuck:
        made_in(folder)
        assert open_copy(folder) is not None
        stuck.kill()
    shutil.rmtree(folder)
    made_in(folder)
    assert open_copy(folder) is not None


def test_the_slower_of_two_makers_leaves_the_faster_one_s_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, made, faster = tmp_path / "fp32-key", layers(), []
    monkeypatch.setattr("sdcli.weights.prepared.making", lambda _: nullcontext())

    def pack(name: str) -> list[torch.Tensor]:
        if name == "linear":
            with monkeypatch.context() as other:
                other.setattr("os.getpid", os.getppid)
                made_in(folder)
            faster.append(inode(folder))
        return packer(made)(name)

    copy = make_copy(folder, made, pack)
    assert faster == [inode(folder)]
    assert torch.equal(run(made["gate"], copy.weights("gate")), run(made["gate"], packer(made)("gate")))
    assert [path.name for path in tmp_path.glob("fp32-*")] == [folder.name]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock")])
def test_where_there_are_no_locks_a_copy_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    monkeypatch.setattr("fcntl.flock", fail if isinstance(error, OSError) else lambda *_: None)
    folder = tmp_path / "fp32-key"
    with in_use(folder):
        made_in(folder)
    assert open_copy(folder) is not None


def test_a_copy_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *paths: (done.append("renamed"), rename(*paths)))
    made_in(tmp_path / "fp32-key")
    assert done == [WEIGHTS, INDEX, unfinished(tmp_path / "fp32-key", os.getpid()).name, "renamed", tmp_path.name]


def test_an_open_copy_is_whole_whatever_becomes_of_its_folder(tmp_path: Path) -> None:
    folder, made = tmp_path / "fp32-key", layers()
    made_in(folder)
    copy = open_copy(folder)
    assert copy is not None
    os.rename(folder, tmp_path / "gone")
    made_in(folder)
    shutil.rmtree(tmp_path / "gone")
    expected = run(made["linear"], packer(made)("linear"))
    assert torch.equal(run(made["linear"], copy.weights("linear")), expected)
    assert torch.equal(run(made["linear"], copy.copied("linear", Arena(MIB))), expected)


def test_a_copy_that_is_used_stays_and_a_damaged_one_goes_though_it_is_used(tmp_path: Path) -> None:
    folder = tmp_path / "fp32-key"
    made_in(folder)
    with in_use(folder):
        remove(folder)
        assert open_copy(folder) is not None
        edit(folder)
        made_in(folder)
        assert open_copy(folder) is not None
    remove(folder)
    assert list(tmp_path.glob("fp32-*")) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_mapping_costs_no_memory_of_ours_and_copying_does(tmp_path: Path) -> None:
    layer = nn.Linear(4096, 2048, bias=False)
    make_copy(tmp_path / "fp32-key", ["it"], lambda _: PackedLinear.pack(layer, layer.weight.detach()))
    before = anonymous_bytes()
    copy = open_copy(tmp_path / "fp32-key")
    assert copy is not None
    (weight,) = copy.weights("it")
    told = hashlib.sha256(raw_bytes(weight)).digest()
    assert anonymous_bytes() - before < 8 * MIB
    (weight,) = copy.copied("it", Arena(33 * MIB))
    assert 24 * MIB < anonymous_bytes() - before < 48 * MIB
    assert hashlib.sha256(raw_bytes(weight)).digest() == told
    del weight
    assert anonymous_bytes() - before < 8 * MIB
