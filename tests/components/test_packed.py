"""Packed weights are the same weights: the same bits come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdcli.components.packed import can_pack, pack
from sdcli.devices.cpu import CpuDevice
from sdcli.devices.mps import MpsDevice

SHAPES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
]


@pytest.mark.skipif(not can_pack(nn.Conv2d(4, 4, 1), CpuDevice()), reason="this torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(f"{k}={v}" for k, v in shape.items()))
@torch.no_grad()
def test_a_packed_convolution_gives_the_same_bits(shape: dict[str, Any], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 48, bias=bias, **shape).to(dtype)
    plain = layer.weight.to(memory_format=torch.channels_last)
    weight = layer.weight.clone()
    forward = pack(layer, weight)
    weight.fill_(torch.nan)  # it is a copy that was packed
    for batch, height, width in ((1, 16, 16), (2, 9, 13)):
        states = torch.randn(batch, 32, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        assert torch.equal(forward(states), nn.functional.conv2d(states, plain, layer.bias, *geometry))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 4),
        nn.Conv1d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
        type("Subclass", (nn.Conv2d,), {})(4, 4, 3),
    ],
    ids=["linear", "1-D", "transposed", "circular", "padding by name", "a class of its own"],
)
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert not can_pack(layer, CpuDevice())


def test_only_the_cpu_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(4, 4, 3)
    assert can_pack(layer, CpuDevice()) == torch.backends.mkldnn.is_available()
    assert not can_pack(layer, MpsDevice())
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(layer, CpuDevice())
