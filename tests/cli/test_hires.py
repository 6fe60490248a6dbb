"""--hires from the command line: one plan for both rounds, one report, and the same picture again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.domain import Hires
from sdcli.images.texts import texts_in
from sdcli.units import MIB
from tests.cli.conftest import Asked, Command, shell
from tests.images.test_masks import photo, spot

Ask = Callable[..., Asked]

JOB = ["a fox", "-s", "2", "--seed", "5", "--dtype", "fp32", "--device", "cpu"]


@pytest.mark.parametrize(
    ("options", "hires"),
    [
        (["--hires", "2x"], Hires(144, 128, 2, 0.7, "latent")),
        (["--hires", "1.5"], Hires(112, 96, 2, 0.7, "latent")),  # 108 is no multiple of 8
        (["--hires", "256X128", "--hires-steps", "9"], Hires(256, 128, 9, 0.7, "latent")),
        (
            ["--hires", "2x", "--hires-strength", "0.4", "--hires-upscaler", "lanczos"],
            Hires(144, 128, 2, 0.4, "lanczos"),
        ),
    ],
    ids=str,
)
def test_what_is_asked_for(asked: Ask, tiny: Path, options: list[str], hires: Hires) -> None:
    task = asked("txt2img", *JOB, "-m", tiny, "--size", "72x64", *options).task
    assert task.request.hires == hires and task.pictures_size == (hires.width, hires.height)
    assert (task.request.width, task.request.height) == (72, 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hires", "big"], "'big' is neither a factor from 1 to 8, as in 2x, nor a size"),
        (["--hires", "nan"], "is neither a factor"),
        (["--hires", "9x"], "is neither a factor"),
        (["--hires", "1x"], "--hires makes it 64x64, not larger than 64x64"),
        (["--hires", "128x32"], "32 is not from 64 to 8192"),
        (["--hires", "65x64"], "is not a multiple of 8"),
        (["--hires", "2x", "--hires-strength", "1.1"], "is not a number from 0 to 1"),
        (["--hires", "2x", "--hires-steps", "0"], "is not from 1 to 1000"),
        (
            ["--hires", "2x", "--hires-steps", "900", "--hires-strength", "0.5"],
            "--hires-steps 900 at --hires-strength 0.5 are the last of 1800, more than the 1000 that the model knows",
        ),
        (["--hires", "8x", "--size", "1032x1032"], "which is too large: sides have at most 8192 pixels"),
        (["--hires", "8192x8192"], "which is too large: it may have 16.8 megapixels"),
    ],
    ids=str,
)
def test_what_cannot_be_is_one_line(sdcli: Command, tiny: Path, options: list[str], said: str) -> None:
    sdcli("txt2img", *JOB, "-m", tiny, "--size", "64x64", *options).refused(2, said)


def test_a_mask_does_not_go_with_it(sdcli: Command, tiny: Path, work: Path) -> None:
    photo().save("init.png")
    spot().save("mask.png")
    given = ["-i", "init.png", "--mask", "mask.png", "--hires", "2x"]
    sdcli("img2img", *JOB, "-m", tiny, *given).refused(2, "--hires does not go with a mask")


def test_its_options_alone_have_no_effect_and_that_is_told(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("plan", *JOB, "-m", tiny, "--hires-steps", "3")
    assert (outcome.code, outcome.err) == (0, "warning: --hires-steps has no effect without --hires\n")


@pytest.mark.full
def test_the_plan_is_one_for_both_rounds_and_the_run_stays_within_it(tiny: Path, work: Path) -> None:
    job = [*JOB, "-m", tiny, "--size", "128x128", "--hires", "2x", "--hires-upscaler", "lanczos"]
    told = json.loads(shell(work, "plan", *job, "--json").stdout)
    names = ["encode_prompt", "denoise", "hires_decode", "hires_encode_image", "hires_denoise", "decode"]
    assert [stage["name"] for stage in told["stages"]] == [stage["name"] for stage in told["plan"]["stages"]] == names
    assert 0 < told["first_step_s"] < told["step_s"]
    least = f"{told['smallest_limit_bytes'] // MIB}MiB"
    done = shell(work, "txt2img", *job, "--mem-limit", least, "-o", "drawn.png", "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert [stage["name"] for stage in report["stages"]] == names
    assert all(stage["peak_bytes"] <= stage["predicted_peak_bytes"] + 4 * MIB for stage in report["stages"])
    assert report["memory"]["peak_bytes"] <= report["memory"]["predicted_peak_bytes"]
    assert (report["images"][0]["width"], report["images"][0]["height"]) == (256, 256)
    assert report["steps"]["count"] == 4


@pytest.mark.full
def test_what_does_not_fit_is_offered_smaller(sdcli: Command, tiny: Path) -> None:
    job = [*JOB, "-m", tiny, "--size", "128x128", "--hires", "8x", "--mem-limit", "260MiB"]
    sdcli("plan", *job).refused(4, "the stage", "at 1024x1024, the ceiling is 260 MiB", "or -W 64 -H 64")


@pytest.mark.full
def test_the_same_picture_again(tiny: Path, work: Path) -> None:
    job = [*JOB, "-m", tiny, "--size", "64x72", "--hires", "1.5x", "--hires-steps", "3", "--hires-strength", "0.5"]
    assert shell(work, "txt2img", *job, "--hires-upscaler", "lanczos", "-o", "one.png").returncode == 0
    done = shell(work, "again", "one.png", "-o", "two.png")
    assert done.returncode == 0 and b"warning" not in done.stderr, done.stderr
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()
    with Image.open(work / "one.png") as drawn:
        assert drawn.size == (96, 112)
    text = texts_in(work / "one.png").by_name["parameters"]
    said = "Denoising strength: 0.5, Hires resize: 96x112, Hires steps: 3, Hires upscaler: Lanczos"
    assert said in text and "Size: 64x72" in text
