"""img2img, inpainting and a second round at real size: within what was predicted, the same bits at any ceiling."""

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
    pytest.mark.long,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the outside view reads /proc"),
]

SIDE = 512

WAYS = {
    "img2img": ("img2img", ["--init", "init.png", "--strength", "1"]),
    "inpainting": ("img2img", ["--init", "init.png", "--mask", "mask.png", "--strength", "1"]),
    "hires": ("txt2img", ["--size", "256x256", "--hires", "2x", "--hires-steps", "2"]),
    "hires by pixels": (
        "txt2img",
        ["--size", "256x256", "--hires", "2x", "--hires-steps", "2", "--hires-upscaler", "lanczos"],
    ),
}
"""What is drawn, each 512x512 in the end."""


def write_pictures() -> None:
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)) // 4
    Image.fromarray(np.stack([ramp, ramp, 255 - ramp], axis=-1).astype(np.uint8)).save("init.png")
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (128, 96, 384, 352))
    mask.save("mask.png")


@pytest.mark.parametrize("way", WAYS)
def test_peaks_are_within_their_predictions_at_every_ceiling(program: Program, way: str) -> None:
    write_pictures()
    command, options = WAYS[way]
    pictures = set()
    for ceiling in ("2GiB", "600MiB", "least"):
        limit = ceiling
        if ceiling == "least":  # now that there is a prepared copy
            told = watch(program.line("plan", *options), program.environment)
            limit = f"{int(json.loads(told.out)['smallest_limit_bytes']) // MIB}MiB"
        drawn = [*options, "--mem-limit", limit, "-o", f"{limit}.png", "--no-metadata"]
        seen = watch(program.line(command, *drawn), program.environment)
        if seen.code == 4 and ceiling == "600MiB":
            continue  # a machine where it takes more
        assert seen.code == 0, seen.err
        report = json.loads(seen.out)
        memory = report["memory"]
        peaks = memory["predicted_peak_bytes"] / MIB, seen.peak_bytes / MIB
        print(f"{way} at {limit}: predicted {peaks[0]:.0f}, took {peaks[1]:.0f} MiB")
        for stage in report["stages"]:
            print(f"  {stage['name']}: {stage['predicted_peak_bytes'] / MIB:.0f}, {stage['peak_bytes'] / MIB:.0f} MiB")
        assert seen.peak_bytes < memory["limit_bytes"]
        assert memory["peak_bytes"] <= memory["predicted_peak_bytes"] <= memory["limit_bytes"]
        pictures.add(Path(f"{limit}.png").read_bytes())
    assert len(pictures) == 1
