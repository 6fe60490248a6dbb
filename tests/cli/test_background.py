"""--background and colour profiles from the command line: what is asked for, what is said, and what comes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli.cli.main import run
from tests.cli.conftest import Asked, Command
from tests.cli.test_again import RECORD

Ask = Callable[..., Asked]
JOB = ["a fox", "-i", "init.png", "--seed", "1"]


@pytest.mark.parametrize(("colour", "pixel"), [("white", b"\xff\xff\xff"), ("#0a141e", b"\x0a\x14\x1e")])
def test_transparency_is_laid_on_it(asked: Ask, tiny: Path, work: Path, colour: str, pixel: bytes) -> None:
    Image.new("RGBA", (64, 64), (250, 0, 0, 0)).save("init.png")
    task = asked("img2img", *JOB, "-m", tiny, "--background", colour).task
    assert task.pixels == pixel * 64 * 64


def test_what_is_no_colour_is_refused(sdcli: Command, tiny: Path, work: Path) -> None:
    Image.new("RGB", (64, 64)).save("init.png")
    sdcli("img2img", *JOB, "-m", tiny, "--background", "whitish").refused(2, "'whitish' is no colour: give a name")


def test_a_picture_says_on_what_and_is_drawn_again_so(asked: Ask, tiny: Path, work: Path) -> None:
    Image.new("RGBA", (64, 64), (250, 0, 0, 0)).save("init.png")
    record = {**RECORD, "model": str(tiny), "width": 64, "height": 64, "strength": 0.5, "background": "#0a141e"}
    info = PngInfo()
    info.add_text("sdcli", json.dumps(record))
    Image.new("RGB", (64, 64)).save("drawn.png", pnginfo=info)
    task = asked("again", "drawn.png", "-i", "init.png").task
    assert task.pixels == b"\x0a\x14\x1e" * 64 * 64 and task.edit is not None
    assert task.edit.background == (10, 20, 30)


def test_a_damaged_profile_is_one_line(tiny: Path, work: Path, asked: Ask, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save("init.png", icc_profile=b"no profile")
    assert run(["img2img", *JOB, "-m", str(tiny)]) == 0
    err = capfd.readouterr().err
    said = "warning: 'init.png': its colour profile is damaged: passed over, the colours are taken as they are\n"
    assert err.count(said) == 1
