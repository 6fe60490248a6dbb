"""The denoiser of FLUX.2 by our way through it, against diffusers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

from sdcli.blocks import joint
from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.rotary import rotations
from sdcli.families.flux2.transformer import Pass, modulations
from sdcli.weights import sliced
from sdcli.weights.sliced import StoredSlices, set_slices
from sdcli.weights.source import Stored
from tests.networks import numbers

WORDS, HEIGHT, WIDTH = 7, 5, 6


@pytest.fixture(scope="module")
def model() -> Flux2Transformer2DModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "in_channels": 8,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    made = Flux2Transformer2DModel(**sizes).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return made


def places(*sides: int) -> torch.Tensor:
    return torch.cartesian_prod(*map(torch.arange, sides))


def both(model: Flux2Transformer2DModel, scratch_bytes: int = 2**20, fused: bool = True) -> tuple[torch.Tensor, ...]:
    """Ours and theirs."""
    dtype = model.proj_out.weight.dtype
    patches, words = numbers(HEIGHT * WIDTH, 8).to(dtype), numbers(WORDS, 24, seed=2).to(dtype)
    there, read = places(1, HEIGHT, WIDTH, 1), places(1, 1, 1, WORDS)
    theirs = model(patches[None], words[None], torch.tensor([0.7]), there, read, return_dict=False)[0][0]
    turns = rotations(torch.cat([read, there]), (4, 4, 4, 4), 2000)
    (modulation,) = modulations(model, torch.tensor([700.0]), dtype)
    go = Pass(model, modulation, BoundedAttention(scratch_bytes, fused), lambda after: None)
    return go(patches, words, turns, HEIGHT * WIDTH), theirs


@torch.no_grad()
def test_it_is_the_library_s_own(model: Flux2Transformer2DModel) -> None:
    ours, theirs = both(model)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    ours, theirs = both(model, scratch_bytes=2**10, fused=False)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_it_is_the_same_by_small_pieces(model: Flux2Transformer2DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "GROUP_BYTES", 2 * 4 * 16 * (WORDS + HEIGHT * WIDTH))  # two heads of four
    monkeypatch.setattr(sliced, "TOKENS_LYING", 9)
    ours, theirs = both(model)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_weights_of_another_type_are_cast_by_slices(
    model: Flux2Transformer2DModel, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Weights of a file in this type, computed with in FP32: as the library's own that has the rounded weights."""
    monkeypatch.setattr(sliced, "PIECE_BYTES", 4 * 64 * 20)
    monkeypatch.setattr(sliced, "TOKENS_CAST", 11)
    linear = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    kept = [layer.weight.data for layer in linear]
    try:
        for layer, weight in zip(linear, kept, strict=True):
            stored = weight.to(dtype)
            layer.weight.data = stored.float()
            set_slices(layer, StoredSlices(Stored(stored), torch.device("cpu"), torch.float32))
        ours, theirs = both(model)
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    finally:
        for layer, weight in zip(linear, kept, strict=True):
            layer.weight.data = weight
            vars(layer).pop("slices", None)


@torch.no_grad()
def test_in_bf16_it_is_as_near_to_fp32_as_the_library_s(model: Flux2Transformer2DModel) -> None:
    exact = both(model)[1]
    try:
        ours, theirs = both(model.to(torch.bfloat16))
    finally:
        model.float()
    assert ours.dtype is torch.bfloat16
    assert (ours - exact).square().mean() <= 1.1 * (theirs - exact).square().mean()
