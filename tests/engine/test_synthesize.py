"""Synthetic models are the same bytes for the same seed, whole, and models to any library."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from sdcli.engine import synthesize as module
from sdcli.engine.synthesize import synthesize, write_model
from sdcli.errors import SdcliError
from sdcli.messages import Finished, Progress
from sdcli.models.opened import open_model
from sdcli.models.synthetic import find_synthetic
from tests.conftest import TINY
from tests.support import geometry_of

CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


def make(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    for _ in write_model({**TINY, **changes}, folder):
        pass
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_is_the_same_bytes_and_another_is_not(tiny: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path / "again")) == contents(tiny)
    other = contents(make(tmp_path / "other", seed=8))
    for part in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        assert other[f"{part}.safetensors"] != contents(tiny)[f"{part}.safetensors"]


def test_a_seed_s_bytes_do_not_depend_on_what_ran_before(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    torch.randn(7)
    assert contents(make(tmp_path / "again")) == contents(tiny)


def test_a_tensor_longer_than_a_piece_does_not_repeat_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1024)
    table = load_file(make(tmp_path / "pieces") / "text_encoder" / "model.safetensors")
    rows = table["embeddings.token_embedding.weight"].flatten().split(1024)
    assert len(rows) > 50 and len({tuple(row[:8].tolist()) for row in rows}) == len(rows)


def test_the_manifest_has_every_file_with_its_digest(tiny: Path) -> None:
    manifest = json.loads((tiny / "manifest.json").read_text("utf-8"))
    files = {name: data for name, data in contents(tiny).items() if name != "manifest.json"}
    assert manifest["files"].keys() == files.keys()
    for name, data in files.items():
        assert manifest["files"][name]["size"] == len(data)
        assert manifest["files"][name]["sha256"] == hashlib.sha256(data).hexdigest()
    assert len(manifest["sha256"]) == 64


def test_what_was_made_is_found_again_and_made_anew_once_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_config", lambda kind, name: TINY)
    made: list[str] = []

    def run(name: str, half: Path) -> None:
        made.append(name)
        events = list(synthesize(name, half))
        assert isinstance(events[-1], Finished)

    folder, digest = find_synthetic("synthetic:sd15", run)
    assert find_synthetic("synthetic:sd15", run) == (folder, digest) and made == ["sd15"]
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert find_synthetic("synthetic:sd15", run) == (folder, digest) and made == ["sd15", "sd15"]


@pytest.mark.parametrize("part", CLASSES)
def test_libraries_load_it_strictly_with_nothing_missing(tiny: Path, part: str) -> None:
    plain, report = CLASSES[part].from_pretrained(
        tiny, subfolder=part, output_loading_info=True, dtype=torch.float16, local_files_only=True
    )
    assert not any(report.values()), report
    (file,) = (tiny / part).glob("*.safetensors")
    stored = load_file(file)
    parameters = dict(plain.named_parameters())
    named = {name.removeprefix("text_model."): parameter for name, parameter in parameters.items()}
    assert named.keys() == stored.keys()
    assert all(torch.equal(named[name], stored[name]) for name in stored)


def test_we_ourselves_find_a_whole_model(tiny: Path) -> None:
    model = open_model("tiny", tiny)
    assert geometry_of(model).native_size == (64, 64) and model.family == "sd"


def test_numbers_are_those_of_an_untrained_model(tiny: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet", dtype=torch.float32)
    for name, layer in unet.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or weight.numel() < 4096:
            continue
        expected = 1 / math.sqrt(3 * weight[0].numel())
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        assert weight.std().item() == pytest.approx(expected, rel=0.1), name
        assert abs(weight.mean().item()) < expected / 5, name
    assert all(torch.isfinite(parameter).all() and parameter.std() > 0 for parameter in unet.parameters())
    norms = torch.cat([layer.weight for layer in unet.modules() if isinstance(layer, nn.GroupNorm)])
    assert norms.mean().item() == pytest.approx(1, abs=0.05)


def test_no_two_tensors_are_alike(tiny: Path) -> None:
    for part in CLASSES:
        (file,) = (tiny / part).glob("*.safetensors")
        beginnings = [tuple(tensor.flatten()[:8].tolist()) for tensor in load_file(file).values()]
        assert len(set(beginnings)) == len(beginnings)


def test_progress_counts_every_byte_of_weights(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    events = list(write_model(TINY, tmp_path / "model"))
    totals = {event.total for event in events}
    stored = sum(origin.info.nbytes for part in CLASSES for origin in part_of(tmp_path / "model", part).values())
    assert totals == {stored} and events[-1] == Progress(stored, stored)
    assert [event.done for event in events] == sorted({event.done for event in events})


def part_of(folder: Path, part: str) -> Any:
    return open_model("m", folder).parts[part].weights()


def test_a_full_disk_is_one_line_with_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Any:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(module, "_write_weights", full)
    with pytest.raises(SdcliError, match=r"No space left on device; it takes .* GB, set SDCLI_CACHE"):
        make(tmp_path / "model")
