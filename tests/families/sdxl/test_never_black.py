"""SDXL's own autoencoder overflows in FP16: a tiny one that does, too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.errors import NotFinite
from tests.families.sdxl.test_pictures import REQUEST
from tests.support import draw, largest_difference, run_engine, subject

SHORT = replace(REQUEST, steps=1, width=64)


@pytest.fixture(scope="module")
def loud(xl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a decoder whose maps have numbers of millions between norms."""
    copy = tmp_path_factory.mktemp("models") / "loud"
    shutil.copytree(xl, copy)
    (file,) = (copy / "vae").glob("*.safetensors")
    tensors = {name: tensor.float() for name, tensor in load_file(file).items()}
    for name in ("decoder.mid_block.resnets.0.conv2.weight", "decoder.mid_block.resnets.1.conv2.weight"):
        tensors[name] *= 1e6
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


@pytest.mark.full
def test_fp16_decodes_as_fp32_does(loud: Path) -> None:
    exact, ours = draw(loud, request=SHORT), draw(loud, request=SHORT, dtype="fp16")
    assert exact.float().std() > 10
    assert largest_difference(ours, exact) <= 8, "the rest is in half precision"
    assert not torch.equal(ours, exact)


@pytest.mark.full
def test_img2img_in_fp16_is_no_black_picture(loud: Path) -> None:
    request = replace(SHORT, strength=1.0)
    assert draw(loud, request=request, dtype="fp16", payload=bytes(range(192)) * 64).float().std() > 10


@pytest.mark.full
def test_one_that_is_said_to_be_fixed_is_trusted(loud: Path, tmp_path: Path) -> None:
    copy = tmp_path / "fixed"
    shutil.copytree(loud, copy)
    config = json.loads((copy / "vae" / "config.json").read_text())
    (copy / "vae" / "config.json").write_text(json.dumps(config | {"force_upcast": False}))
    with pytest.raises(NotFinite, match="stage decode"):
        run_engine(copy, SHORT, dtype="fp16")


def test_its_maps_are_counted_as_large_as_they_are(loud: Path) -> None:
    """Maps that last are half as large as in FP32, too; bands are not."""
    ways = {dtype: subject(loud, SHORT, dtype).counts["decode"].ways for dtype in ("fp32", "fp16", "bf16")}
    assert ways["fp16"] == ways["fp32"] != ways["bf16"]
