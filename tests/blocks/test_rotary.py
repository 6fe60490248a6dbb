"""Rotary positions against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed

from sdcli.blocks.rotary import rotate, rotations
from tests.networks import numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pairs_are_turned_in_place_as_the_library_turns_them(dtype: torch.dtype) -> None:
    places, heads = torch.cartesian_prod(torch.arange(3), torch.arange(40)), numbers(120, 2, 12).to(dtype)
    turns = rotations(places, (4, 8), 2000.0)
    each = [
        get_1d_rotary_pos_embed(size, places[:, axis], 2000.0, use_real=True, freqs_dtype=torch.float64)
        for axis, size in enumerate((4, 8))
    ]
    cos, sin = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
    expected = apply_rotary_emb(heads[None], (cos, sin), sequence_dim=1)[0]
    turned = rotate(heads, turns)
    assert turned is heads
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=1e-6 if dtype is torch.float32 else 0.008)
