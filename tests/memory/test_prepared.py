"""Where a prepared copy goes: one place for each model, type, processor and torch, and never where it would hurt."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from sdcli import machine
from sdcli.memory import prepared
from sdcli.memory.prepared import LEFT_FREE_BYTES, outdated, place_of_copy, unfinished
from sdcli.models.folder import open_model
from sdcli.units import GIB

Usage = namedtuple("Usage", "total used free")
SIZE = (64, 64)


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that packs, with an empty cache on a disk with room."""
    monkeypatch.setattr(machine, "cpu_packs_weights", lambda dtype: True)
    monkeypatch.setattr(prepared, "_kind_of_disk", lambda path: "ext4")
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
    monkeypatch.setattr(machine, "cpu_packs_for", lambda height, width: (1, height, width))
    places |= {place_of_copy(model, "cpu", "bf16", size) for size in ((48, 64), (64, 48))}
    monkeypatch.setattr(machine, "cpu_packs_for", lambda height, width: (2, 64, 64))
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
        patch.setattr(prepared, "_kind_of_disk", lambda path: "tmpfs")
        assert place_of_copy(model, "cpu", "bf16", SIZE) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert place_of_copy(model, "cpu", "bf16", SIZE) is None
    place = place_of_copy(model, "cpu", "bf16", SIZE)
    assert place is not None
    place.mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    assert place_of_copy(model, "cpu", "bf16", SIZE) == place, "one that is there needs no room"


def test_a_model_that_has_gone_has_no_copy(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    model = open_model("m", tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert place_of_copy(model, "cpu", "bf16", SIZE) is None


def test_outdated_are_copies_of_the_same_type_and_what_the_dead_left(tmp_path: Path) -> None:
    folder = tmp_path / "bf16-now"
    dead = 2**22 + 1  # above any process id of Linux
    keep = [folder, tmp_path / "fp32-other", unfinished(folder, os.getpid())]
    drop = [tmp_path / "bf16-before", unfinished(tmp_path / "bf16-before", dead)]
    for path in keep + drop:
        path.mkdir()
    assert sorted(outdated(folder)) == sorted(drop)
