"""--hires with every family: two rounds, by either upscaler, the same under every plan."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.domain import Hires, Request, Upscaler
from sdcli.messages import StageBegan, StepDone
from tests.families.flux2.klein import KLEIN
from tests.families.sdxl.tiny import XL
from tests.families.zimage.tiny import TINY as ZIMAGE
from tests.support import STREAMED, pictures, quick, run_engine

__all__ = ["quick"]

REQUEST = Request("a red fox", "ugly", 64, 64, 2, 3.0, 7, 1, hires=Hires(96, 64, 2, 0.6))


@pytest.fixture(scope="module", params=[XL, KLEIN, ZIMAGE], ids=["sdxl", "flux2", "zimage"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sdcli.engine.synthesize import write_model

    folder, config = tmp_path_factory.mktemp("models") / "m", dict[str, Any](request.param)
    folder.mkdir()
    deque(write_model(config, folder), maxlen=0)
    return folder


@pytest.mark.every(6)
@pytest.mark.parametrize("upscaler", ["latent", "lanczos"])
def test_it_is_drawn_in_two_rounds_and_alike_under_every_plan(model: Path, upscaler: Upscaler) -> None:
    assert REQUEST.hires is not None
    asked = replace(REQUEST, hires=replace(REQUEST.hires, upscaler=upscaler))
    events = run_engine(model, asked)
    (drawn,) = pictures(events)
    assert drawn.shape == (64, 96, 3)
    assert [event.round for event in events if isinstance(event, StepDone)] == [0, 0, 1, 1]
    assert {"hires_denoise", "decode"} <= {event.name for event in events if isinstance(event, StageBegan)}
    frugal = replace(STREAMED, guidance="sequential", give_back="piece", ways={"decode": "recomputed"})
    (same,) = pictures(run_engine(model, asked, frugal))
    assert torch.equal(same, drawn)
