"""A prompt that was encoded once needs its text encoder no more, and whatever is not the very same is computed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli import settings
from sdcli.devices import open_device
from sdcli.domain import Request
from sdcli.engine import encodings
from sdcli.engine.generate import generate
from sdcli.engine.synthesize import write_model
from sdcli.messages import Message, Notice, StageLoaded
from sdcli.weights.lend import lend_weights
from tests.families.zimage.tiny import FOX, TINY
from tests.support import job_of, pictures
from tests.support import run_engine as run_engine_once

SHORT = replace(FOX, steps=1)
run_engine = partial(run_engine_once, keeps=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "z"
    folder.mkdir()
    for _ in write_model(TINY, folder):
        pass
    return folder


@pytest.fixture
def lent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts whose weights were borrowed."""
    names: list[str] = []

    def noted(module: Any, component: Any, *arguments: Any, **options: Any) -> Any:
        names.append(component.name)
        return lend_weights(module, component, *arguments, **options)

    monkeypatch.setattr("sdcli.weights.borrow.lend_weights", noted)
    return names


def kept_files() -> list[Path]:
    folder = settings.cache_dir() / "encodings"
    return sorted(folder.iterdir()) if folder.exists() else []


def was_kept(events: list[Message]) -> bool:
    return any(isinstance(event, StageLoaded) and event.kept for event in events)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_second_picture_of_a_prompt_needs_no_text_encoder(model: Path, lent: list[str], guidance: float) -> None:
    request = replace(SHORT, guidance=guidance)
    first = run_engine(model, request)
    assert not was_kept(first) and "text_encoder" in lent
    lent.clear()
    second = run_engine(model, request)
    assert was_kept(second) and lent == ["transformer", "vae"]
    assert torch.equal(pictures(second)[0], pictures(first)[0])
    lent.clear()
    other = run_engine(model, replace(request, seed=5, width=64, count=2, steps=2))
    assert was_kept(other) and "text_encoder" not in lent


def test_what_was_said_of_a_prompt_is_said_again(model: Path) -> None:
    request = replace(SHORT, prompt="1" * 600)
    told = [[event for event in run_engine(model, request) if isinstance(event, Notice)] for _ in range(2)]
    assert told[0] == told[1] and "is too long: its last" in told[0][0].what


def test_it_is_for_this_user_alone_and_has_no_word_in_it(model: Path) -> None:
    run_engine(model, SHORT)
    (path,) = kept_files()
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"fox" not in path.read_bytes() and "fox" not in path.name


@pytest.mark.parametrize(
    "change", [{"prompt": "a fox in the snow."}, {"guidance": 2.0}, {"guidance": 2.0, "negative": ""}], ids=repr
)
def test_other_words_are_encoded(model: Path, change: dict[str, Any]) -> None:
    run_engine(model, SHORT)
    assert not was_kept(run_engine(model, replace(SHORT, **change)))


def test_a_negative_that_has_no_say_is_none(model: Path) -> None:
    run_engine(model, SHORT)
    assert was_kept(run_engine(model, replace(SHORT, negative="anything")))


def test_another_type_is_computed(model: Path) -> None:
    run_engine(model, SHORT)
    assert not was_kept(run_engine(model, SHORT, dtype="bf16"))


@pytest.mark.parametrize("name", ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
def test_another_file_is_another_encoding(model: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    run_engine(copy, SHORT)
    again = tmp_path / "again"
    shutil.copyfile(copy / name, again)
    os.replace(again, copy / name)
    assert not was_kept(run_engine(copy, SHORT))
    assert was_kept(run_engine(copy, SHORT))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)


def make_infinite(path: Path) -> None:
    tensors = load_file(path)
    tensors["conditioning/tokens"].view(-1)[0] = torch.inf
    del tensors[encodings.DIGEST]
    tensors[encodings.DIGEST] = encodings._bytes(encodings._digest(tensors))
    save_file(tensors, path)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], object]] = [
    flip,
    make_infinite,
    make_a_folder,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b"x" * 999),
    lambda path: save_file({"a": torch.zeros(1)}, path),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_as_none(model: Path, damage: Callable[[Path], object]) -> None:
    first = run_engine(model, SHORT)
    (path,) = kept_files()
    damage(path)
    second = run_engine(model, SHORT)
    assert not was_kept(second) and torch.equal(pictures(second)[0], pictures(first)[0])


def test_those_used_longest_ago_go_first(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = [replace(SHORT, prompt=f"{name} fox") for name in ("red", "tan", "raw")]
    run_engine(model, requests[0])
    (oldest,) = kept_files()
    os.utime(oldest, (1, 1))
    run_engine(model, requests[1])
    (newer,) = set(kept_files()) - {oldest}
    os.utime(newer, (2, 2))
    assert was_kept(run_engine(model, requests[0])), "now it was used"
    monkeypatch.setattr(encodings, "CAP_BYTES", int(oldest.stat().st_size * 2.5))
    run_engine(model, requests[2])
    assert oldest in kept_files() and newer not in kept_files() and len(kept_files()) == 2


def test_one_that_is_too_large_is_not_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "FILE_BYTES", 100)
    run_engine(model, SHORT)
    assert kept_files() == []


def test_a_run_that_wants_none_leaves_none_and_takes_none(model: Path) -> None:
    def run() -> list[Message]:
        return list(generate(job_of(model, SHORT, keeps=False), open_device("cpu")))

    run()
    assert kept_files() == []
    run_engine(model, SHORT)
    assert len(kept_files()) == 1 and not was_kept(run())


def test_where_nothing_can_be_written_all_goes_on(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "encodings").write_text("a file", "utf-8")
    first, second = run_engine(model, SHORT), run_engine(model, SHORT)
    assert not was_kept(second) and torch.equal(pictures(first)[0], pictures(second)[0])
