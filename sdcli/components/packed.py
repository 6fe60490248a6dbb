"""Convolution weights in the CPU library's own layout, made once.

oneDNN computes with blocked weights and, given plain ones, re-lays them out in every call: at the small
sides of the UNet that takes eight times longer than the convolution itself, and needs memory the size of the weight.
The operators are those that torch's own compiler emits for a CPU; the result has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sdcli.devices.base import Device


def can_pack(layer: nn.Module, device: Device) -> bool:
    """Whether this layer on this device gains from packing and torch has the operators for it."""
    return (
        device.name == "cpu"
        and type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def pack(
    layer: nn.Conv2d, weight: torch.Tensor, padding: tuple[int, int] | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's forward with a packed copy of `weight`, (out, in, kernel, kernel) and contiguous; it is not kept.

    `padding` is in place of the layer's own.
    """
    geometry = (list(padding or layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, [2, layer.in_channels, 64, 64])

    def forward(states: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            states, packed, layer.bias, *geometry, "none", [], ""
        )
        return output

    return forward
