"""The gated feed-forward by pieces, against the formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdcli.blocks.gated import Gated
from sdcli.weights import sliced
from sdcli.weights.sliced import StoredSlices, set_slices
from sdcli.weights.source import Stored
from tests.networks import numbers


@pytest.mark.parametrize("lies", [True, False])
@torch.no_grad()
def test_it_is_the_formula_with_rows_of_a_fused_layer_and_what_lies_beside(
    monkeypatch: pytest.MonkeyPatch, lies: bool
) -> None:
    monkeypatch.setattr(sliced, "PIECE_BYTES", 4 * 16 * 7)
    fused, down = nn.Linear(16, 10 + 2 * 24, bias=False), nn.Linear(6 + 24, 16, bias=False)
    states, beside = numbers(5, 16), numbers(5, 6, seed=2)
    if not lies:
        for layer in (fused, down):
            stored = layer.weight.detach().to(torch.bfloat16)
            layer.weight.copy_(stored)
            set_slices(layer, StoredSlices(Stored(stored), torch.device("cpu"), torch.float32))
    feed_forward = Gated(fused, fused, down, width=24, gate_row=10, up_row=34, down_column=6)
    gate, up = fused(states)[:, 10:].chunk(2, dim=1)
    torch.testing.assert_close(feed_forward(states, beside), down(torch.cat([beside, F.silu(gate) * up], dim=1)))
    plain = Gated(fused, fused, nn.Linear(24, 16, bias=False), width=24, gate_row=10, up_row=34)
    torch.testing.assert_close(plain(states), plain.down(F.silu(gate) * up))
