"""From what is asked for to a task: what was said is taken as it is, the rest is decided, and each decision told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from sdcli import machine
from sdcli.app.asked import Asked, Note
from sdcli.app.record import Task
from sdcli.app.tasks import prepare
from sdcli.errors import BadRequest

FOX = Asked("a red fox", seed=7)


def prepared(asked: Asked) -> tuple[Task, list[Note]]:
    """The task, and all that was told."""
    told: list[Note] = []
    return prepare(asked, told.append), told


def test_what_was_not_said_is_the_model_s_own_and_what_was_said_is_taken_as_it_is(tiny: Path) -> None:
    asked = replace(FOX, model=str(tiny))
    task, _ = prepared(asked)
    request = task.request
    assert (request.width, request.height, request.steps, request.guidance, request.strength) == (64, 64, 20, 7.5, None)
    assert (request.prompt, request.negative, request.seed, request.count, task.pixels) == ("a red fox", "", 7, 1, b"")
    task, _ = prepared(replace(asked, width=128, guidance=0.0, steps=1, seed=0))
    request = task.request
    assert (request.width, request.height, request.guidance, request.steps, request.seed) == (128, 64, 0.0, 1, 0)


@pytest.mark.parametrize(("strength", "taken"), [(None, 0.6), (0.0, 0.0), (1.0, 1.0)])
def test_an_init_image_sets_the_size(tiny: Path, strength: float | None, taken: float) -> None:
    Image.new("RGB", (128, 72), "teal").save("init.png")
    task, _ = prepared(replace(FOX, model=str(tiny), init="init.png", strength=strength))
    assert (task.request.width, task.request.height, task.request.strength) == (128, 72, taken)
    assert len(task.pixels) == 128 * 72 * 3


def test_decisions_are_told_by_kind(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_devices", lambda: {"cpu": "always there"})
    task, told = prepared(replace(FOX, negative="ugly", guidance=1.0, dtype="fp16"))
    assert task.model.ref == "demo" and task.dtype == "fp16"
    kinds = [(note.kind, note.what.split(":")[0]) for note in told]
    assert kinds[0] == ("notice", "no --model given")
    assert ("warning", "--negative has no effect at --guidance 1") in kinds
    assert ("warning", "fp16 arithmetic on a CPU can be hundreds of times slower than bf16 or fp32") in kinds
    assert ("detail", "device") in kinds


def test_what_the_model_cannot_do_is_refused(tiny: Path) -> None:
    with pytest.raises(BadRequest, match=r"--width 100 is not a multiple of 8, which this model needs: give 96 or 104"):
        prepared(replace(FOX, model=str(tiny), width=100))
    with pytest.raises(BadRequest, match="leaves no room for 2 pictures"):
        prepared(replace(FOX, model=str(tiny), seed=2**64 - 1, count=2))
