"""One thread and few collections for all tests of this folder, and the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families.zimage.tiny import TINY
from tests.support import quick

__all__ = ["quick"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder, in diffusers layout. Treat it as read-only."""
    from sdcli.engine.synthesize import write_model

    folder = tmp_path_factory.mktemp("models") / "z"
    folder.mkdir()
    for _ in write_model(TINY, folder):
        pass
    return folder
