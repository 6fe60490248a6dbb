"""Inpainting as a user meets it: what is outside the mask is the init image's own, in the file that comes out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.conftest import SDCLI
from tests.folders import made
from tests.images.test_masks import photo, spot

JOB = ("a red fox", "-s", "4", "--seed", "5", "--mem-limit", "none", "--strength", "0.8")


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("models") / "nine", {"unet": {"in_channels": 9}})


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a picture of 128 x 96 pixels and its mask."""
    photo().save(tmp_path / "init.png")
    spot().save(tmp_path / "mask.png")
    return tmp_path


def edit(work: Path, model: Path, *options: str, name: str = "out.png") -> Image.Image:
    line = [*SDCLI, "img2img", *JOB, "-i", "init.png", "-m", str(model), *options, "--json", "--force", "-o", name]
    done = subprocess.run(line, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["memory"]["peak_bytes"] <= report["memory"]["predicted_peak_bytes"]
    with Image.open(work / name) as picture:
        picture.load()
        assert (report["images"][0]["width"], report["images"][0]["height"]) == picture.size
        return picture


def changed(one: Image.Image, other: Image.Image) -> np.ndarray:  # type: ignore[type-arg]
    """Where two pictures differ."""
    return np.asarray(np.any(np.asarray(one) != np.asarray(other), axis=2))


def test_outside_the_mask_every_bit_is_the_init_s(nine: Path, work: Path) -> None:
    differs = changed(edit(work, nine, "--mask", "mask.png", "--mask-blur", "0"), photo())
    inside = np.asarray(spot()) > 0
    assert not differs[~inside].any() and differs[inside].mean() > 0.9


@pytest.mark.full
def test_a_blur_goes_over_from_one_to_the_other_and_the_picture_says_so(tiny: Path, work: Path) -> None:
    picture = edit(work, tiny, "--mask", "mask.png")
    differs = changed(picture, photo())
    assert not differs[:, :24].any() and not differs[:, 76:].any() and differs[28:30, 44:56].any()
    settings = picture.info["parameters"]
    assert "Mask blur: 4" in settings and "Inpaint area: Whole picture" in settings
    assert "Denoising strength: 0.8" in settings
    table = json.loads(picture.info["sdcli"])
    assert table["mask_blur"] == 4 and len(table["mask_sha256"]) == 64 and table["mask_padding"] is None


@pytest.mark.full
def test_margins_and_what_is_transparent_are_drawn(tiny: Path, work: Path) -> None:
    transparent = photo()
    transparent.putalpha(spot().point([255 - level for level in range(256)]))
    transparent.save(work / "init.png")
    picture = edit(work, tiny, "--outpaint", "0,8,32,0", "--mask", "alpha", "--mask-blur", "0")
    inside = np.asarray(spot()) > 0
    differs = changed(picture.crop((0, 8, 128, 104)), photo())
    assert picture.size == (160, 104) and not differs[~inside].any() and differs[inside].mean() > 0.9


@pytest.mark.full
def test_the_masked_part_alone_comes_back_into_a_picture_of_its_own_size(tiny: Path, work: Path) -> None:
    photo(500, 333).save(work / "init.png")
    mask = spot((500, 333), (200, 100, 260, 140))
    mask.save(work / "mask.png")
    options = ("--mask", "mask.png", "--mask-blur", "0", "--inpaint-area", "masked", "-W", "128")
    picture = edit(work, tiny, *options)
    inside = np.asarray(mask) > 0
    differs = changed(picture, photo(500, 333))
    assert picture.size == (500, 333) and not differs[~inside].any() and differs[inside].mean() > 0.9
    assert "Inpaint area: Only masked, Masked area padding: 32" in picture.info["parameters"]
    assert "Size: 128x64" in picture.info["parameters"], "the model's own height"


@pytest.mark.full
def test_a_plan_knows_of_the_mask(sdcli: Command, tiny: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work)
    job = ("plan", "a fox", "-m", tiny, "-i", "init.png", "--json")
    peaks = []
    for options in ((), ("--mask", "mask.png")):
        outcome = sdcli(*job, *options)
        assert outcome.code == 0, outcome.err
        stages = {stage["name"]: stage["predicted_peak_bytes"] for stage in json.loads(outcome.out)["stages"]}
        peaks.append(stages)
    assert peaks[1]["denoise"] > peaks[0]["denoise"] and peaks[1]["decode"] > peaks[0]["decode"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--invert-mask"], "--invert-mask without a mask: give --mask IMAGE"),
        (["--inpaint-area", "masked"], "--inpaint-area masked without a mask"),
        (["--mask", "gone.png"], "no such file: 'gone.png'"),
        (["--mask", "alpha"], "'init.png' has no transparency"),
        (["--mask", "wide.png"], "give one of the same shape"),
        (["--mask", "black.png"], "has nothing white"),
        (["--outpaint", "1,2,3"], "are no margins"),
        (["--outpaint", "0,0,0,0"], "are no margins"),
        (["--outpaint", "-8,0,0,0"], "are no margins"),
        (["--outpaint", "0,0,4,0"], "multiples of 8"),
        (["--outpaint", "8000,8000,8000,8000"], "too large"),
        (["--fit", "exact", "--size", "64x64"], "has 128x96 pixels, not 64x64"),
        (["--mask-blur", "65"], "--mask-blur"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    sdcli: Command, tiny: Path, work: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(work)
    spot((64, 128)).save("wide.png")
    Image.new("L", (128, 96)).save("black.png")
    sdcli("img2img", "a", "-i", "init.png", "-m", tiny, *options).refused(2, said)
    assert photo().tobytes() == Image.open("init.png").tobytes()


def test_a_blur_without_a_mask_has_no_effect_and_that_is_told(
    sdcli: Command, tiny: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    outcome = sdcli("plan", "a", "-i", "init.png", "-m", tiny, "--mask-blur", "9")
    assert (outcome.code, outcome.err) == (0, "warning: --mask-blur has no effect without a mask\n")


def test_a_mask_without_a_picture_is_refused(sdcli: Command, tiny: Path) -> None:
    sdcli("plan", "a", "-m", tiny, "--mask", "x.png").refused(2, "give --init")
