"""Drawing with prepared copies: whatever becomes of the cache, the picture is the model's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.devices import open_device
from sdcli.domain import Plan, Request
from sdcli.engine.generate import generate
from sdcli.errors import SdcliError
from sdcli.messages import Message, Notice, StepDone
from sdcli.models.opened import open_model
from sdcli.weights.copies import is_made, making, place_of_copy, remove
from sdcli.weights.packed import can_map
from tests.support import ASTRONAUT, STREAMED, job_of, pictures, run_engine

pytestmark = [pytest.mark.skipif(not can_map(), reason="packed weights cannot be mapped here")]

SHORT = replace(ASTRONAUT, steps=2)
COPIED = replace(STREAMED, prepared=True)
PARTLY = replace(COPIED, residency="partial", resident_bytes=1_500_000)


def run(model: Path, copy: Path, plan: Plan = COPIED, request: Request = SHORT) -> Iterator[Message]:
    device = open_device("cpu")
    device.prepare(None)
    return generate(job_of(model, request, plan, prepared=str(copy)), device)


def drawn(events: list[Message]) -> torch.Tensor:
    return pictures(events)[0]


def notices(events: list[Message]) -> list[str]:
    return [event.what for event in events if isinstance(event, Notice)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prepared" / "model" / "fp32-0123456789abcdef"


def test_a_copy_is_made_once_and_again_when_it_has_gone(tiny: Path, place: Path) -> None:
    expected = drawn(run_engine(tiny, SHORT))
    for made_before in (False, True):
        events = list(run(tiny, place))
        assert torch.equal(drawn(events), expected) and is_made(place)
        assert bool(notices(events)) is not made_before
    remove(place)
    assert torch.equal(drawn(list(run(tiny, place))), expected) and is_made(place)


@pytest.mark.parametrize("leftover", ["file", "folder", "pipe"])
def test_what_lies_in_the_place_of_a_copy_gives_way(tiny: Path, place: Path, leftover: str) -> None:
    place.parent.mkdir(parents=True)
    {"file": place.touch, "folder": place.mkdir, "pipe": lambda: os.mkfifo(place)}[leftover]()
    assert torch.equal(drawn(list(run(tiny, place))), drawn(run_engine(tiny, SHORT))) and is_made(place)


def test_two_runs_at_once_at_two_sizes_keep_both_copies(tiny: Path, place: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SDCLI_PREPARED_CAP", "1KiB")
    wide, elsewhere = replace(SHORT, width=96), place.with_name("fp32-fedcba9876543210")
    theirs = place.with_name(f"{place.name}.4711.part")  # on another machine, with the home folder that we share
    theirs.mkdir(parents=True)
    going = run(tiny, place)
    told = []
    for event in going:
        told.append(event)
        if isinstance(event, StepDone) and event.step == 1:
            assert torch.equal(drawn(list(run(tiny, elsewhere, request=wide))), drawn(run_engine(tiny, wide)))
            assert is_made(place) and is_made(elsewhere)
    assert torch.equal(drawn(told), drawn(run_engine(tiny, SHORT)))
    assert theirs.is_dir()
    list(run(tiny, place.with_name("fp32-0000000000000000")))
    assert not is_made(place) and not is_made(elsewhere), "nobody uses them any more, and the cap is reached"


def test_a_copy_that_goes_while_it_is_used_is_used_to_the_end(tiny: Path, place: Path) -> None:
    told = []
    for event in run(tiny, place, request=replace(SHORT, count=2)):
        told.append(event)
        if isinstance(event, StepDone) and event.step == 1:
            shutil.rmtree(place, ignore_errors=True)
    assert torch.equal(drawn(told), drawn(run_engine(tiny, SHORT)))


def test_another_run_that_makes_it_is_told_of(tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.weights.copies.WAIT_S", 0.1)
    list(run(tiny, place))
    expected = place.rename(place.with_name("fp32-0000000000000001"))
    with making(place):
        monkeypatch.setattr("sdcli.engine.denoise.being_made", lambda folder: True)
        shutil.copytree(expected, place)
        (place / "index.json").unlink()
        assert "another run is preparing the denoiser: waiting for it" in notices(list(run(tiny, place)))


def test_where_no_copy_can_be_made_the_run_goes_on_without(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "fp32-0123456789abcdef"
    events = list(run(tiny, place, PARTLY))
    assert torch.equal(drawn(events), drawn(run_engine(tiny, SHORT)))
    assert any("cannot prepare the denoiser" in what and "going on without" in what for what in notices(events))
    with pytest.raises(SdcliError, match="cannot prepare the denoiser"):  # this ceiling is kept with a copy alone
        list(run(tiny, place, COPIED))


@pytest.mark.parametrize("how", ["cp -p", "mv", "edited in place, touch -r"])
def test_weights_replaced_under_their_name_size_and_time_draw_their_own_picture(
    tiny: Path, tmp_path: Path, how: str
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    opened, sees = open_model("m", model), (1, 8, 8)
    first = place_of_copy(opened.parts["unet"], "cpu", "fp32", sees, 10**6)
    assert first is not None
    before = drawn(list(run(model, first)))
    origin = opened.parts["unet"].weights()["mid_block.resnets.0.conv1.weight"]
    weights, info = origin.path, origin.info
    status, raw = weights.stat(), bytearray(weights.read_bytes())
    data = 8 + int.from_bytes(raw[:8], "little")
    raw[data + info.begin : data + info.end] = raw[data + info.begin : data + info.end][::-1][1:] + b"\0"
    other = weights if how == "edited in place, touch -r" else tmp_path / "other.safetensors"
    other.write_bytes(raw)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    if how != "edited in place, touch -r":
        (shutil.copy2 if how == "cp -p" else os.replace)(other, weights)
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    second = place_of_copy(open_model("m", model).parts["unet"], "cpu", "fp32", sees, 10**6)
    assert second is not None
    after = drawn(list(run(model, second)))
    assert torch.equal(after, drawn(run_engine(model, SHORT))) and not torch.equal(after, before)


def test_where_weights_cannot_be_mapped_none_is_made(tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.engine.denoise.can_map", lambda: False)
    events = list(run(tiny, place))
    assert not place.exists() and list(place.parent.glob("*.part")) == [] == notices(events)
    assert torch.equal(drawn(events), drawn(run_engine(tiny, SHORT)))
