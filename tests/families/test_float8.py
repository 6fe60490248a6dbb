"""Denoisers and text encoders in float8 draw what their numbers draw, and no weight is there as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.models.opened import open_model
from sdcli.weights import sliced
from sdcli.weights.source import Source
from tests.families.zimage.tiny import FOX, TINY
from tests.originals import Tensors, original_vae
from tests.split_files import VAE, comfy_tree, made, original_z_image
from tests.support import STREAMED, counted, draw, largest_difference

SHORT = replace(FOX, width=64, height=64, steps=1)
LAYER = "layers.1.attention.qkv"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser in ComfyUI's folders, in BF16."""
    home = tmp_path_factory.mktemp("models")
    folder = made({**TINY, "dtype": "BF16", "vae": {**TINY["vae"], **VAE}}, home / "z")
    return comfy_tree(folder, home, "z_image_turbo.safetensors", "ae.safetensors", original_z_image, original_vae)


def squeezed(tensors: Tensors, way: str) -> tuple[Tensors, Tensors]:
    """Matrices in float8, as a program leaves them, and the numbers that they are."""
    narrow, exact = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        home, _, leaf = name.rpartition(".")
        if tensor.ndim < 2 or leaf != "weight":
            continue
        scale = torch.tensor(1.0) if way == "cast" else tensor.float().abs().max() / 448
        narrow[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        exact[name] = narrow[name].float() * scale
        if way == "scaled_fp8":
            narrow[f"{home}.scale_weight"], narrow[f"{home}.scale_input"] = scale, torch.tensor(1.0)
        elif way == "comfy_quant":
            narrow[f"{home}.weight_scale"], narrow[f"{home}.input_scale"] = scale, torch.tensor(1.0)
            narrow[f"{home}.comfy_quant"] = mark({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
    if way == "scaled_fp8":
        narrow["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    return narrow, exact


def mark(table: dict[str, Any]) -> torch.Tensor:
    """A layer's note, as ComfyUI writes it."""
    return torch.tensor([*json.dumps(table).encode()], dtype=torch.uint8)


def beside(single: Path, tensors: Tensors, name: str, **notes: str) -> Path:
    path = single.with_name(f"{name}.safetensors")
    save_file({name: one.contiguous() for name, one in tensors.items()}, path, notes)
    return path


@pytest.mark.parametrize("way", ["cast", "scaled_fp8", "comfy_quant"])
def test_each_slice_is_what_its_numbers_are(single: Path, way: str) -> None:
    narrow, exact = squeezed(load_file(single), way)
    paths = beside(single, narrow, f"turbo_{way}"), beside(single, exact, "turbo_exact")
    ours, theirs = (open_model("m", Sources(str(path))).parts["transformer"] for path in paths)
    cpu, rows, columns = torch.device("cpu"), slice(5, 30), slice(3, 40)
    assert ours.weights().keys() == theirs.weights().keys()
    with Source(ours) as one, Source(theirs) as other:
        for name, origin in ours.weights().items():
            stored, expected = one.stored(name, origin.shape), other.stored(name, origin.shape)
            if name.endswith("to_q.weight"):
                piece = stored.slice_of(rows, columns, cpu, torch.float32)
                assert torch.equal(piece, expected.slice_of(rows, columns, cpu, torch.float32)), name
            assert torch.equal(stored.cast(cpu, torch.float32), expected.cast(cpu, torch.float32)), name


@pytest.mark.full
def test_it_draws_what_its_numbers_draw(single: Path) -> None:
    narrow, exact = squeezed(load_file(single), "comfy_quant")
    text = single.parents[1] / "text_encoders" / "qwen_3_4b.safetensors"
    few, words = squeezed(load_file(text), "scaled_fp8")
    homes = beside(text, few, "fp8"), beside(text, words, "exact")
    paths = beside(single, narrow, "turbo_fp8"), beside(single, exact, "turbo_exact")
    ours, theirs = (Sources(str(path), {"text_encoder": str(home)}) for path, home in zip(paths, homes, strict=True))
    expected = draw(theirs, request=SHORT)
    drawn = draw(ours, request=SHORT)
    assert largest_difference(drawn, expected) <= 1
    assert largest_difference(draw(Sources(str(single)), request=SHORT), drawn) > 1, "float8 has no say"
    assert torch.equal(draw(ours, request=SHORT, plan=STREAMED), drawn)


@pytest.mark.full
def test_the_plan_counts_the_slices_of_bf16(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are cast as well, and of the same size."""
    monkeypatch.setattr(sliced, "PIECE_BYTES", 2**10)
    request = replace(SHORT, width=96)  # that no other test has counted in larger pieces
    path = beside(single, squeezed(load_file(single), "comfy_quant")[0], "turbo_f8")
    ours, theirs = (counted(Sources(str(one)), request)["denoise"] for one in (path, single))
    assert ours.ways == theirs.ways


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({f"{LAYER}.comfy_quant": mark({"format": "nvfp4"})}, "nvfp4"),
        ({f"{LAYER}.comfy_quant": mark({"format": "int8_tensorwise"})}, "int8_tensorwise"),
        ({f"{LAYER}.weight.quant_state.bitsandbytes__nf4": torch.ones(9, dtype=torch.uint8)}, r"nf4 \(bitsandbytes\)"),
        ({f"{LAYER}.weight.absmax": torch.ones(9)}, "bitsandbytes"),
        ({f"{LAYER}.wscales": torch.ones(9)}, r"int4 \(nunchaku\)"),
        ({f"{LAYER}.weight_scale_2": torch.ones(())}, "nvfp4"),
    ],
)
def test_other_types_are_refused_by_name(single: Path, more: Tensors, said: str) -> None:
    path = beside(single, {**load_file(single), **more}, "turbo_other")
    with pytest.raises(SdcliError, match=f"has weights in '{said}', which is not supported: give BF16, FP16 or float8"):
        open_model("m", Sources(str(path)))


def test_so_are_those_that_the_header_names(single: Path) -> None:
    said = json.dumps({"format_version": "1.0", "layers": {LAYER: {"format": "mxfp8"}}})
    path = beside(single, load_file(single), "turbo_noted", _quantization_metadata=said)
    with pytest.raises(SdcliError, match="has weights in 'mxfp8'"):
        open_model("m", Sources(str(path)))
    fine = said.replace("mxfp8", "float8_e4m3fn")
    open_model("m", Sources(str(beside(single, load_file(single), "turbo_fine", _quantization_metadata=fine))))


def test_a_scale_for_each_row_is_refused(single: Path) -> None:
    narrow, _ = squeezed(load_file(single), "comfy_quant")
    narrow[f"{LAYER}.weight_scale"] = torch.ones(len(narrow[f"{LAYER}.weight"]), 1)
    with pytest.raises(SdcliError, match="is not one number: only one scale a tensor is read"):
        open_model("m", Sources(str(beside(single, narrow, "turbo_rows"))))


def test_gguf_is_named(single: Path) -> None:
    path = single.with_name("turbo-Q4_K_M.gguf")
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(SdcliError, match="is a GGUF file, not safetensors"):
        open_model("m", Sources(str(path)))
