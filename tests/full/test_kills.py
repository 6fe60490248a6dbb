"""SIGKILL at 20 instants of each kind of run, to the worker, to the host and to both: resume draws the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.kills import KINDS, WHO, Killing, go_through

pytestmark = [pytest.mark.full, pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_any_instant_is_resumed_with_the_same_bytes(
    tiny: Path, tmp_path: Path, kind: str, who: str
) -> None:
    Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(tmp_path / "init.png")
    assert go_through(Killing(tmp_path, tiny, kind), who, times=20, seed=1) > 10
