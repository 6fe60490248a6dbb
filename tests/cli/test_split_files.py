"""Split files through the command line: what is found near a denoiser is said, drawn with, and drawn with again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_bring_your_own import pixels, run
from tests.families.zimage.tiny import TINY
from tests.originals import original_vae
from tests.split_files import VAE, comfy_tree, made, original_z_image

JOB = ("a fox", "-s", "2", "--seed", "5", "--size", "64x64", "--mem-limit", "none")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Z-Image's in ComfyUI's folders."""
    home = tmp_path_factory.mktemp("models")
    folder = made({**TINY, "dtype": "BF16", "vae": {**TINY["vae"], **VAE}}, home / "z")
    return comfy_tree(folder, home, "z_image_turbo.safetensors", "ae.safetensors", original_z_image, original_vae)


@pytest.mark.full
def test_what_was_taken_is_said_kept_and_drawn_with_again(denoiser: Path, tmp_path: Path) -> None:
    said = run("txt2img", *JOB, "-m", denoiser, "-o", tmp_path / "a.png").stderr
    assert (
        "taken with it: text_encoder '../text_encoders/qwen_3_4b.safetensors', vae '../vae/ae.safetensors',"
        " tokenizer '../text_encoders'" in said
    )
    assert "Z-Image-Turbo by its name" in said
    with Image.open(tmp_path / "a.png") as picture:
        parts = json.loads(picture.info["sdcli"])["parts"]
    assert parts["vae"] == str((denoiser.parents[1] / "vae" / "ae.safetensors").resolve())
    said = run("again", tmp_path / "a.png", "-o", tmp_path / "b.png").stderr
    assert "taken with it" not in said and "sampler" not in said
    assert pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")


def test_what_lacks_is_named_and_a_sampler_that_cannot_go(denoiser: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "z_image_turbo.safetensors"
    alone.parent.mkdir()
    alone.write_bytes(denoiser.read_bytes())
    said = run("txt2img", *JOB, "-m", alone, "--tokenizer", denoiser.parents[1] / "text_encoders", code=1).stderr
    assert "lacks text_encoder and vae: give --text-encoder and --vae, or put qwen_3_4b.safetensors and ae" in said
    said = run("txt2img", *JOB, "-m", denoiser, "--sampler", "ddim", code=2).stderr
    assert "give Euler, Euler a, Heun or DPM++ 2M, or leave it out" in said
