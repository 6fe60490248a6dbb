"""The ceilings hold at real size, seen from outside, and the predictions are honest."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdcli.units import MIB
from tests.full.conftest import Program
from tests.full.outside import watch

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the outside view reads /proc"),
]

CEILINGS = {"2.8GiB": 2.8 * 2**30, "2GiB": 2 * 2**30}


@pytest.mark.parametrize("limit", CEILINGS)
@pytest.mark.parametrize("command", ["txt2img", "img2img"])
def test_the_peak_is_under_the_ceiling_with_the_denoiser_resident(program: Program, command: str, limit: str) -> None:
    options = ["--mem-limit", limit, "-o", "out.png"]
    if command == "img2img":
        ramp = np.add.outer(np.arange(512), np.arange(512)) // 4
        Image.fromarray(np.stack([ramp, ramp, 255 - ramp], axis=-1).astype(np.uint8)).save("init.png")
        options += ["--init", "init.png", "--strength", "1"]
    seen = watch(program.line(command, *options), program.environment)
    assert seen.code == 0, seen.err

    report = json.loads(seen.out)
    memory = report["memory"]
    assert seen.peak_bytes < CEILINGS[limit]
    assert report["plan"]["residency"] == "resident"
    assert memory["peak_bytes"] == pytest.approx(seen.peak_bytes, rel=0.03)
    assert memory["peak_bytes"] <= memory["predicted_peak_bytes"] <= memory["limit_bytes"]
    with Image.open("out.png") as picture:
        assert picture.size == (512, 512)


def test_a_smaller_ceiling_streams_and_gives_the_same_bits_in_less_memory(program: Program) -> None:
    peaks, pixels = [], []
    for limit in ("2.8GiB", "1GiB"):
        seen = watch(program.line("txt2img", "--mem-limit", limit, "-o", f"{limit}.png"), program.environment)
        assert seen.code == 0, seen.err
        peaks.append(seen.peak_bytes)
        with Image.open(f"{limit}.png") as picture:
            pixels.append(picture.tobytes())
    assert pixels[0] == pixels[1]
    assert peaks[1] < 2**30 < peaks[0] - 512 * MIB


def test_the_ceiling_that_is_offered_survives_and_a_little_less_is_refused(program: Program) -> None:
    refused = watch(program.line("txt2img", "--mem-limit", "600MiB", "-o", "small.png"), program.environment)
    assert refused.code == 4
    offered = int(refused.err.partition("give --mem-limit ")[2].partition("MiB")[0])

    taken = watch(program.line("txt2img", "--mem-limit", f"{offered}MiB", "-o", "small.png"), program.environment)
    assert taken.code == 0, taken.err
    assert taken.peak_bytes < offered * MIB

    less = watch(program.line("txt2img", "--mem-limit", f"{offered - 32}MiB", "-o", "less.png"), program.environment)
    assert less.code == 4
    assert not Path("less.png").exists()
