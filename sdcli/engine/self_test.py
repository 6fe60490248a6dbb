"""What a device computes, compared with FP32 on the CPU: the arithmetic that a denoise step is made of, in a second.

Convolutions and products go through the kernels that the denoiser goes through, attention through the same code.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.devices.base import DTYPES, Device
from sdcli.engine.pace import as_denoised
from sdcli.messages import Message, SelfTest, SelfTested, StageBegan, StageEnded
from sdcli.units import MIB

STAGE = "self-test"

CHANNELS, SIDE, HEADS = 320, 24, 8
"""Heads of 40 numbers, as in the first level of Stable Diffusion 1.5, which some kernels of GPUs do not have."""

ALLOWED = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 6e-2}
"""Of the largest number. Rounding of 3,000 products comes to a tenth of it; FP32 has room for TF32."""

COPIES = 5


@torch.inference_mode()
def self_test(asked: SelfTest, device: Device) -> Iterator[Message]:
    """Yields the differences, and the speed of memory. What is made here is gone then."""
    yield StageBegan(STAGE)
    started, dtype = time.perf_counter(), DTYPES[asked.dtype]
    generator = torch.Generator("cpu").manual_seed(0)
    states = torch.randn(1, CHANNELS, SIDE, SIDE, generator=generator)
    tokens = states.flatten(2).transpose(1, 2)
    layers: dict[str, tuple[nn.Module, torch.Tensor]] = {
        "convolution": (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), states),
        "product": (nn.Linear(CHANNELS, 4 * CHANNELS), tokens),
    }
    differences = {}
    for name, (layer, given) in layers.items():
        for parameter in layer.parameters():
            spread = 1 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        expected = layer(given)
        run = as_denoised(layer, device, dtype, SIDE)
        differences[name] = _difference(run(_there(given, device, dtype)), expected)
    with device.repeating():
        differences |= _attention(tokens, device, dtype)
    memory_bytes = _copy_speed(asked.copied_bytes, device) if asked.copied_bytes else None
    device.release()
    yield StageEnded(STAGE, time.perf_counter() - started)
    yield SelfTested(differences, ALLOWED[asked.dtype], memory_bytes)


def _attention(tokens: torch.Tensor, device: Device, dtype: torch.dtype) -> dict[str, float]:
    """Of all tokens with all, as in the denoiser, and of each with those before it, as in text encoders."""
    heads = tokens.view(1, -1, HEADS, CHANNELS // HEADS).transpose(1, 2)
    there = _there(heads, device, dtype)
    scale = 1 / math.sqrt(heads.shape[-1])
    bounded = BoundedAttention(8 * MIB, device.fused_attention(dtype), device.name == "cpu")
    attended = bounded.attend(there.clone(), there, there, scale)
    causal = F.scaled_dot_product_attention(there, there, there, is_causal=True)
    scores = heads @ heads.transpose(2, 3) * scale
    later = torch.ones_like(scores[0, 0]).triu(1).bool()
    return {
        "attention": _difference(attended, scores.softmax(-1) @ heads),
        "causal attention": _difference(causal, scores.masked_fill(later, -math.inf).softmax(-1) @ heads),
    }


def _there(states: torch.Tensor, device: Device, dtype: torch.dtype) -> torch.Tensor:
    states = states.to(device.torch_device, dtype)
    return states.contiguous(memory_format=device.memory_format) if states.shape[1:2] == (CHANNELS,) else states


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, as a share of the largest number that there should be; infinite where a number is none."""
    share = float((found.float().cpu() - expected).abs().max() / expected.abs().max())
    return share if math.isfinite(share) else math.inf


def _copy_speed(size_bytes: int, device: Device) -> float:
    """Bytes that are read and written a second, of the fastest of some copies."""
    source = torch.ones(size_bytes // 8, dtype=torch.float32, device=device.torch_device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        device.synchronize()

    return 2 * source.nbytes / min(_seconds(copy) for _ in range(COPIES))


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
