"""Pictures to go by: read at a size that the model takes, and refused where it takes none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from PIL import Image

from sdcli.app.asked import Asked, Note
from sdcli.app.record import Task
from sdcli.app.references import digests_of_references
from sdcli.app.tasks import prepare
from sdcli.errors import BadRequest
from tests.families.flux2.conftest import klein

__all__ = ["klein"]


def prepared(model: Path, *files: str) -> Task:
    told: list[Note] = []
    asked = Asked("a fox", seed=7, model=str(model), references=files, width=64, height=64)
    return prepare(asked, told.append)


@pytest.mark.parametrize(
    ("own", "size"), [((64, 80), (64, 80)), ((130, 95), (128, 80)), ((2048, 1024), (1440, 720)), ((64, 64), (64, 64))]
)
def test_a_picture_is_cut_to_what_the_model_takes(klein: Path, own: tuple[int, int], size: tuple[int, int]) -> None:
    Image.new("RGB", own, (200, 30, 90)).save("one.png")
    Image.new("RGB", (64, 64)).save("other.png")
    task = prepared(klein, "one.png", "other.png")
    assert task.request.references == (size, (64, 64))
    assert len(task.references) == 3 * (size[0] * size[1] + 64 * 64) and task.references[:3] == bytes((200, 30, 90))
    assert task.pixels == b"" and task.request.strength is None
    told = [hashlib.sha256(bytes((200, 30, 90)) * (size[0] * size[1])).hexdigest()]
    assert digests_of_references(task) == [*told, hashlib.sha256(bytes(3 * 64 * 64)).hexdigest()]


def test_models_that_go_by_none_or_by_fewer_say_so(klein: Path, tiny: Path) -> None:
    Image.new("RGB", (64, 64)).save("one.png")
    with pytest.raises(BadRequest, match="this model goes by no pictures"):
        prepared(tiny, "one.png")
    with pytest.raises(BadRequest, match="11 times --ref: this model goes by 10 pictures at most"):
        prepared(klein, *["one.png"] * 11)
    Image.new("RGB", (60, 600)).save("narrow.png")
    with pytest.raises(BadRequest, match=r"'narrow\.png' has fewer than 64 pixels"):
        prepared(klein, "narrow.png")
    with pytest.raises(BadRequest, match="no such file"):
        prepared(klein, "none.png")
