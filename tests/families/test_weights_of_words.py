"""Families that read sentences say so of marks that only programs read; the others honour them."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from sdcli.app.asked import Asked, Note
from sdcli.app.tasks import request_of
from sdcli.models.opened import open_model
from tests.families.flux2.klein import KLEIN
from tests.families.sdxl.tiny import XL
from tests.families.zimage.tiny import TINY as ZIMAGE


@pytest.mark.parametrize(
    ("config", "told"), [(KLEIN, True), (ZIMAGE, True), (XL, False)], ids=["flux2", "zimage", "sdxl"]
)
def test_weights_are_honoured_or_it_is_said_that_they_are_not(
    tmp_path: Path, config: dict[str, Any], told: bool
) -> None:
    from sdcli.engine.synthesize import write_model

    folder, notes = tmp_path / "m", list[Note]()
    folder.mkdir()
    deque(write_model(config, folder), maxlen=0)
    model = open_model("m", folder)
    for prompt, marked in (("a (red:1.3) fox", True), ("a fox (young) at 12:30", False)):
        notes.clear()
        request = request_of(Asked(prompt, 1), model, None, notes.append)
        assert request.prompt == prompt
        said = [note.what for note in notes if "as they are written" in note.what and note.kind == "warning"]
        assert len(said) == (told and marked)
