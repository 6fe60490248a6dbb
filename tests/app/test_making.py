"""A synthetic model is made when a picture that fits is to be drawn: until then an outline of it is enough."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcli.app.asked import Asked, Note
from sdcli.app.making import with_weights
from sdcli.app.record import Task
from sdcli.app.tasks import prepare
from sdcli.cli.main import run
from sdcli.engine import synthesize as module
from sdcli.engine.synthesize import synthesize
from sdcli.errors import WillNotFit
from sdcli.messages import Progress
from sdcli.models.synthetic import find_outlined, is_outline, made_names, outline_folder
from sdcli.units import MIB
from tests.conftest import TINY

Made = list[tuple[str, bool]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """What workers are asked to make, each with whether it is an outline: of a tiny model, in this process."""
    monkeypatch.setattr(module, "read_config", lambda kind, name: TINY)
    asked_for: Made = []

    def make(
        name: str, folder: Path, show: Callable[[Progress], None], debug: bool = False, outline: bool = False
    ) -> None:
        asked_for.append((name, outline))
        collections.deque(synthesize(name, folder, outline), maxlen=0)

    for user in ("sdcli.app.tasks", "sdcli.app.making"):
        monkeypatch.setattr(f"{user}.make_synthetic", make)
    return asked_for


def prepared(limit: str, told: list[Note] | None = None) -> Task:
    notes: list[Note] = [] if told is None else told
    return prepare(Asked("a fox", seed=7, model="synthetic:sd15", mem_limit=limit), notes.append)


def nobody(name: str) -> Callable[[Progress], None]:
    raise AssertionError(f"{name} is made")


def test_what_will_not_fit_is_refused_before_anything_is_made(made: Made) -> None:
    told: list[Note] = []
    task = prepared("100MiB", told)
    assert any("is not made yet" in note.what and "in your cache" in note.what for note in told)
    with pytest.raises(WillNotFit):
        with_weights(task, nobody)
    assert made == [("sd15", True)] and made_names() == []


def test_what_fits_is_drawn_with_the_very_model_that_was_outlined(made: Made) -> None:
    task = prepared("2GiB")
    whole = with_weights(task, lambda _: lambda _: None)
    assert made == [("sd15", True), ("sd15", False)] and made_names() == ["sd15"]
    assert whole.model.digest == task.model.digest and whole.model.path != task.model.path
    assert task.model.sha256 is None and whole.model.sha256 is not None
    assert not outline_folder("sd15").exists()
    told: list[Note] = []
    again = prepared("2GiB", told)
    assert with_weights(again, nobody) is again and len(made) == 2
    assert not any("is not made yet" in note.what for note in told)


def test_an_outline_takes_no_room_and_says_what_the_model_will_take(made: Made) -> None:
    task = prepared("2GiB")
    whole = with_weights(prepared("2GiB"), lambda _: lambda _: None)
    sizes = [[file.size_bytes for part in one.model.parts.values() for file in part.files] for one in (task, whole)]
    assert sizes[0] == sizes[1]
    outlined, _ = find_outlined("synthetic:sdxl", lambda name, folder: module.write_outline(TINY, folder))
    files = [*outlined.rglob("*.safetensors")]
    assert len(files) == 3 and sum(file.stat().st_blocks for file in files) * 512 < sum(sizes[1]) / 4


def test_a_damaged_outline_is_made_anew(made: Made) -> None:
    prepared("2GiB")
    prepared("2GiB")
    assert made == [("sd15", True)]
    (outline_folder("sd15") / "unet" / "config.json").write_text("{}")
    prepared("2GiB")
    assert made == [("sd15", True)] * 2


@pytest.mark.parametrize(
    ("limits", "outcomes"), [("60MiB,100MiB", ["will_not_fit"] * 2), ("60MiB,2GiB", ["will_not_fit", "ok"])]
)
def test_bench_makes_a_model_if_one_of_its_ceilings_is_enough(
    made: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], limits: str, outcomes: list[str]
) -> None:
    drawn: list[Task] = []

    def draw(task: Task, *_: object) -> None:
        if task.ceiling.limit_bytes == 60 * MIB:
            raise WillNotFit("will not fit")
        drawn.append(task)

    monkeypatch.setattr("sdcli.app.benching.run_task", draw)
    assert run(["bench", "-m", "synthetic:sd15", "--mem-limit", limits, "--json", "-q"]) == 0
    assert [one["outcome"] for one in json.loads(capfd.readouterr().out)["runs"]] == outcomes
    fits = "ok" in outcomes
    assert made == [("sd15", True), ("sd15", False)][: 1 + fits] and len(drawn) == 2 * fits  # warmed up first
    assert not any(is_outline(task.model) for task in drawn)
