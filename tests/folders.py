"""Models written to folders in diffusers layout: the tiny one, or another, with some settings changed."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdcli.engine.synthesize import write_model
from sdcli.families.sd.single import CLIP_FOLDER
from tests.conftest import TINY

Changes = Mapping[str, Mapping[str, Any]]
"""Settings by the part that has them."""


def made(folder: Path, changes: Changes, base: Mapping[str, Any] = TINY) -> Path:
    """The model of `base` with other settings, and weights for them."""
    config = copy.deepcopy(dict(base))
    for part, settings in changes.items():
        config[part] = config[part] | settings
    folder.mkdir(parents=True)
    for _ in write_model(config, folder):
        pass
    return folder


def with_clip(folder: Path) -> Path:
    """The same folder with CLIP's own vocabulary."""
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
        shutil.copy(CLIP_FOLDER / name, folder / "tokenizer" / name)
    return folder
