"""Files of FLUX.2 and Z-Image that are damaged in every way: an SdcliError or a model, soon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.models.header import read_header
from sdcli.models.opened import open_model
from tests.families.flux2.klein import KLEIN
from tests.families.zimage.tiny import TINY
from tests.models.test_single import SLOW_S, Shapes, damaged, write
from tests.originals import original_vae
from tests.split_files import VAE, made, original_flux2_vae, original_klein, original_z_image, tensors_of
from tests.split_files import write as write_whole

ROUNDS = 120
"""Files of a kind."""

KINDS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "klein": (KLEIN, original_klein, original_flux2_vae),
    "z": (TINY, original_z_image, original_vae),
}


@pytest.fixture(scope="module", params=[*KINDS])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shapes, Path]:
    """The tensors of a file that has all networks, and a tokenizer."""
    config, of_denoiser, of_vae = KINDS[request.param]
    home = tmp_path_factory.mktemp("models")
    folder = made({**config, "vae": {**config["vae"], **VAE}}, home / "m")
    every = {f"model.diffusion_model.{n}": one for n, one in of_denoiser(tensors_of(folder, "transformer")).items()}
    text = tensors_of(folder, "text_encoder")
    every |= {f"text_encoders.qwen3_4b.transformer.{n}": one for n, one in text.items()}
    every |= {f"vae.{n}": one for n, one in of_vae(tensors_of(folder, "vae")).items()}
    tensors = read_header(write_whole(every, home / "whole.safetensors")).tensors
    return {name: (info.dtype, [*info.shape]) for name, info in tensors.items()}, folder / "tokenizer"


@pytest.mark.every(2)
def test_whatever_is_damaged_is_refused_in_one_line_or_is_a_model(
    whole: tuple[Shapes, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    shapes, tokenizer = whole
    opened = 0
    for seed in range(-1, ROUNDS):
        path = write(tmp_path / "m.safetensors", shapes if seed < 0 else damaged(shapes, seed))
        begun = time.process_time()
        try:
            open_model("m", Sources(str(path), {"tokenizer": str(tokenizer)}))
            opened += 1
        except SdcliError as error:
            assert seed >= 0, error
            assert str(error).isprintable() and len(str(error)) < 700, seed
        assert time.process_time() - begun < SLOW_S, seed
    assert 1 < opened < ROUNDS
