"""One thread and few collections for all tests of this folder, and the tiny model."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from tests.families.sdxl.tiny import XL
from tests.support import quick

__all__ = ["quick"]


@pytest.fixture(scope="session")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder, in diffusers layout. Treat it as read-only."""
    from sdcli.engine.synthesize import write_model

    folder = tmp_path_factory.mktemp("models") / "xl"
    folder.mkdir()
    deque(write_model(XL, folder), maxlen=0)
    return folder
