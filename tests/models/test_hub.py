"""Folders of the Hub's cache: the snapshot that is meant, or which there are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli.models.reference import resolve_model

Refused = Callable[..., AbstractContextManager[None]]

ONE, OTHER = "1" * 40, "2" * 40


@pytest.fixture
def top(tmp_path: Path, build_model: Callable[[Path], Path]) -> Path:
    """The top folder of a model in the cache, with one snapshot and no refs."""
    folder = tmp_path / "hub" / "models--somebody--tiny"
    build_model(folder / "snapshots" / ONE)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    return folder


def resolved(folder: Path) -> tuple[Path, str]:
    """The folder of the model that was opened, and what was said."""
    model = resolve_model(str(folder), lambda *_: None)
    assert model.ref == str(folder)
    return model.path, " ".join(model.notes)


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_snapshot_that_refs_main_names_is_taken_and_said(top: Path, end: str) -> None:
    (top / "snapshots" / OTHER).mkdir()
    (top / "refs" / "main").write_text(ONE + end)
    for folder in (top, top / "snapshots"):
        found, said = resolved(folder)
        assert found == (top / "snapshots" / ONE).resolve() and "main snapshot, 11111111" in said
    assert resolved(top / "snapshots" / ONE) == ((top / "snapshots" / ONE).resolve(), "")


def test_without_refs_main_the_only_snapshot_is_taken_and_of_several_one_is_asked_for(
    top: Path, refused: Refused
) -> None:
    assert "its only snapshot" in resolved(top)[1]
    (top / "snapshots" / OTHER).mkdir()
    with refused(1, "no refs/main", f"give one of '{ONE}', '{OTHER}'"):
        resolved(top)


@pytest.mark.parametrize("named", ["../../..", "/", ".", "..", "", "a/b", "\x1b[2J", "\0"])
def test_a_name_that_can_be_no_folder_s_is_not_followed(top: Path, named: str) -> None:
    (top / "refs" / "main").write_text(named)
    assert "its only snapshot" in resolved(top)[1]


def test_a_snapshot_that_is_named_and_not_there_is_said(top: Path, refused: Refused) -> None:
    (top / "refs" / "main").write_text(OTHER)
    with refused(1, f"'{OTHER}', is not there", f"give one of '{ONE}'"):
        resolved(top)


def test_a_half_fetched_snapshot_names_what_it_lacks(top: Path, refused: Refused) -> None:
    path = top / "snapshots" / ONE / "vae" / "diffusion_pytorch_model.safetensors"
    path.unlink()
    path.symlink_to("../../../blobs/lost")
    with refused(1, "lacks vae/diffusion_pytorch_model.safetensors", "a file that is gone"):
        resolved(top)


def test_a_folder_of_models_names_them(
    top: Path, tmp_path: Path, build_model: Callable[[Path], Path], refused: Refused
) -> None:
    with refused(1, "is not a model's folder", "models--somebody--tiny"):
        resolved(top.parent)
    with refused(1, "is not a model's folder", "models--somebody--tiny"):
        resolved(tmp_path)  # the cache above it, as HF_HOME names it
    build_model(tmp_path / "sd15" / "sd15")
    with refused(1, "is not a model's folder", "/sd15'"):
        resolved(tmp_path / "sd15")
    (tmp_path / "empty").mkdir()
    with refused(1, "lacks", "complete the folder"):
        resolved(tmp_path / "empty")
