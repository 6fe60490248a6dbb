"""--decoder tiny: told in the report and the picture, planned for, and drawn again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from sdcli.cli.main import run
from tests.cli.conftest import Command, shell


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("models") / "taesd"
    AutoencoderTiny().save_pretrained(folder)
    return folder / "diffusion_pytorch_model.safetensors"


@pytest.mark.full
def test_a_picture_of_it_says_so_and_is_drawn_again(tiny: Path, taesd: Path, work: Path) -> None:
    argv = ["txt2img", "a fox", "-m", tiny, "-s", "1", "--seed", "1", "--size", "64x64", "--dtype", "fp32"]
    done = shell(work, *argv, "--decoder", "tiny", "--tiny-decoder", taesd, "--json", "-o", "one.png")
    assert done.returncode == 0 and b"pictures come from the tiny autoencoder" in done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert report["model"]["decoder"] == str(taesd)
    assert report["plan"]["stages"][-1]["resident"] == {"tiny_decoder": 0}
    with Image.open(work / "one.png") as one:
        told = json.loads(one.info["sdcli"])
    assert told["decoder"] == "tiny" and told["parts"] == {"tiny_decoder": str(taesd)}
    assert shell(work, "again", "one.png", "-o", "two.png").returncode == 0
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()


def test_where_it_is_not_on_disk_it_is_said_what_fetches_it(sdcli: Command, tiny: Path) -> None:
    sdcli("plan", "a fox", "-m", tiny, "--decoder", "tiny").refused(
        3, "no tiny decoder on this disk: fetch it with sdcli models pull madebyollin/taesd diffusion_pytorch_model.saf"
    )


def test_without_decoder_tiny_it_has_no_effect(
    tiny: Path, taesd: Path, work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", "a fox", "-m", str(tiny), "--tiny-decoder", str(taesd), "--size", "64x64", "--mem-limit", "1MiB"]
    assert run(argv) == 4
    assert "--tiny-decoder has no effect without --decoder tiny" in capfd.readouterr().err
