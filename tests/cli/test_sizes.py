"""Sizes that SDXL's denoiser is told: as options, in the picture, and again."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import shell
from tests.families.sdxl.tiny import XL


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sdcli.engine.synthesize import write_model

    folder = tmp_path_factory.mktemp("models") / "xl"
    folder.mkdir()
    deque(write_model(XL, folder), maxlen=0)
    return folder


@pytest.mark.full
def test_a_picture_says_them_and_is_drawn_again_by_them(xl: Path, work: Path) -> None:
    sizes = ["--original-size", "640x480", "--crop", "24,8", "--target-size", "512x768"]
    argv = ["txt2img", "a fox", "-m", xl, "-s", "1", "--seed", "1", "--size", "64x64", "--dtype", "fp32", "--no-cache"]
    assert shell(work, *argv, *sizes, "-o", "one.png").returncode == 0
    with Image.open(work / "one.png") as one:
        told = json.loads(one.info["sdcli"])
    assert [told[name] for name in ("original_size", "crop", "target_size")] == ["640x480", "24,8", "512x768"]
    done = shell(work, "again", "one.png", "-o", "two.png", env={"SDCLI_CROP": "1,1"})
    assert done.returncode == 0 and b"warning" not in done.stderr, done.stderr
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--original-size", "640x480"], "--original-size: this model is not told of it, as those of SDXL are"),
        (["--crop", "0,0"], "--crop: this model is not told of it"),
        (["--target-size", "640x480"], "--target-size: this model is not told of it"),
        (["--crop", "1"], "'1' is no corner: give pixels from the left and from above, as in 0,64"),
        (["--original-size", "0x9"], "'0x9' is not a size: give width and height, as in 640x480"),
    ],
    ids=repr,
)
def test_what_a_model_is_not_told_is_refused(tiny: Path, work: Path, options: list[str], said: str) -> None:
    done = shell(work, "plan", "a fox", "-m", tiny, *options)
    assert done.returncode == 2 and said in done.stderr.decode(), done.stderr
