"""How fast a device computes what a denoise step is made of, found out in less than a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.devices.base import Device
from sdcli.plan.ways import SCRATCHES
from sdcli.weights.packed import packing_of

SIDE, CHANNELS, HEADS = 32, 320, 8
"""The first level of Stable Diffusion at 256x256."""

TOKENS, SCALE = SIDE**2, (CHANNELS // HEADS) ** -0.5

SHARES = {"convolution": 0.5, "linear": 0.35, "attention": 0.15}
"""Of a step's operations."""

OTHER = 1.4
"""A step takes so many times what those take: norms, activations, and weights that come from memory."""

WHILE_S = 0.05
"""How long each of them is run for."""


@torch.inference_mode()
def operations_a_second(device: Device, dtype: torch.dtype) -> float:
    """Floating-point operations of a denoise step that the device does in a second."""
    convolution = as_denoised(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), device, dtype, SIDE)
    linear = as_denoised(nn.Linear(CHANNELS, 4 * CHANNELS), device, dtype, SIDE)
    states = torch.ones(1, CHANNELS, SIDE, SIDE, dtype=dtype, device=device.torch_device)
    states = states.contiguous(memory_format=device.memory_format)
    tokens = states.permute(0, 2, 3, 1).reshape(1, TOKENS, CHANNELS)
    heads = tokens.view(1, TOKENS, HEADS, -1).transpose(1, 2)
    bounded = BoundedAttention(SCRATCHES[-1], device.fused_attention(dtype), device.name == "cpu")
    with device.repeating():  # as the denoise loop does
        seconds = {
            "convolution": _seconds(lambda: convolution(states), device) / (2 * 9 * CHANNELS**2 * TOKENS),
            "linear": _seconds(lambda: linear(tokens), device) / (2 * 4 * CHANNELS**2 * TOKENS),
            "attention": _seconds(lambda: bounded.attend(heads.clone(), heads, heads, SCALE), device)
            / (4 * CHANNELS * TOKENS**2),
        }
    return 1 / (OTHER * sum(share * seconds[what] for what, share in SHARES.items()))


def as_denoised(
    layer: nn.Module, device: Device, dtype: torch.dtype, side: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer as the denoiser would run it over maps of this side."""
    layer = layer.to(device.torch_device, dtype)
    kind = packing_of(layer, device, dtype)
    if kind is None:
        return layer
    packed = kind.pack(layer, layer.get_parameter("weight").detach(), (1, side, side))
    return kind(layer, lambda: packed)


def _seconds(work: Callable[[], object], device: Device) -> float:
    """The fastest run within a while, after one that compiles: another program may take its share of the processor."""
    work()
    device.synchronize()
    begun = started = time.perf_counter()
    fastest = float("inf")
    while started - begun < WHILE_S:
        work()
        device.synchronize()
        ended = time.perf_counter()
        fastest, started = min(fastest, ended - started), ended
    return fastest
