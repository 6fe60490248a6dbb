"""Convolutions with fewer multiplications: what torch's own give, by bands of tiles, at any side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdcli import machine
from sdcli.devices.cpu import CpuDevice
from sdcli.weights import packed, winograd
from sdcli.weights.packed import PackedConvolution, packing_of
from sdcli.weights.winograd import CHANNELS, FEWEST_TILES, TILES, WIDEST, convolve, kernel_for, pays
from tests.networks import numbers
from tests.support import ASTRONAUT, RESIDENT, STREAMED, draw, largest_difference

SIDES = [(32, 32), (64, 64), (40, 24), (9, 13), (4, 100), (1, 1), (3, 70)]
"""Of one band and of several, with whole tiles and with parts of some."""


def weight(channels: int, out: int) -> torch.Tensor:
    """A kernel as models have them."""
    return numbers(out, channels, 3, 3, seed=1) * (9 * channels) ** -0.5


def last(states: torch.Tensor) -> torch.Tensor:
    """With channels last, as the denoiser's maps are."""
    return states.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("padding", [(1, 1), (0, 1), (1, 0), (2, 2)])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_the_convolution(height: int, width: int, padding: tuple[int, int], batch: int) -> None:
    if height + 2 * padding[0] < 3 or width + 2 * padding[1] < 3:
        pytest.skip("no output")
    states, kernel, bias = last(numbers(batch, 128, height, width)), weight(128, 32), numbers(32, seed=2)
    expected = F.conv2d(states.double(), kernel.double(), bias.double(), padding=padding)
    output = convolve(states, kernel_for(kernel), bias, padding)
    assert output.shape == expected.shape and output.is_contiguous(memory_format=torch.channels_last)
    assert (output - expected).abs().max() < 1e-4
    residual = last(numbers(*expected.shape, seed=3))
    with_residual = convolve(states, kernel_for(kernel), None, padding, residual)
    assert (with_residual - (expected - bias[:, None, None] + residual)).abs().max() < 1e-4


def test_its_error_is_some_times_that_of_torch_s_own() -> None:
    """Lavin and Gray (table 3) found so in FP32, for numbers of all sizes."""
    states, kernel = last(numbers(1, 320, 32, 32) * 50), weight(320, 320)
    expected = F.conv2d(states.double(), kernel.double(), padding=1)
    error, torch_s = (
        (output - expected).square().mean().sqrt().item()
        for output in (convolve(states, kernel_for(kernel), None, (1, 1)), F.conv2d(states, kernel, padding=1))
    )
    assert error < 10 * torch_s and error < 1e-5 * expected.abs().max().item()


def test_its_memory_does_not_grow_with_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    empty = torch.empty

    def measured(*sides: int) -> torch.Tensor:
        made = empty(*sides)
        largest.append(made.nbytes)
        return made

    kernel = kernel_for(weight(64, 64))
    taken = []
    for side in (40, 160):
        largest.clear()
        states = last(numbers(1, 64, side, side))
        monkeypatch.setattr(torch, "empty", measured)
        convolve(states, kernel, None, (1, 1))
        monkeypatch.undo()
        taken.append(max(largest[1:]))  # the first is the output
    assert max(taken) <= 36 * TILES * 64 * 4


@pytest.mark.parametrize(
    ("channels", "out", "places", "gains"),
    [
        (320, 320, 64 * 64, True),
        (640, 640, 32 * 32, True),
        (640, 640, 16 * 16, False),
        (1280, 1280, 64 * 64, False),
        (CHANNELS, WIDEST, FEWEST_TILES * 16, True),
        (CHANNELS, WIDEST + 1, FEWEST_TILES * 16, False),
        (CHANNELS, WIDEST, FEWEST_TILES * 16 - 1, False),
        (CHANNELS + 1, WIDEST, FEWEST_TILES * 16, False),
        (4, 320, 64 * 64, False),
    ],
)
def test_small_maps_and_wide_outputs_go_the_plain_way(channels: int, out: int, places: int, gains: bool) -> None:
    assert pays(channels, out, places) is gains


KINDS = {
    "plain": (nn.Conv2d(64, 64, 3, padding=1), torch.float32, 64, None, True),
    "a small map": (nn.Conv2d(64, 64, 3, padding=1), torch.float32, 16, None, False),
    "another stride": (nn.Conv2d(64, 64, 3, padding=1, stride=2), torch.float32, 64, None, False),
    "another kernel": (nn.Conv2d(64, 64, 1), torch.float32, 64, None, False),
    "dilated": (nn.Conv2d(64, 64, 3, padding=2, dilation=2), torch.float32, 64, None, False),
    "in groups": (nn.Conv2d(128, 64, 3, padding=1, groups=2), torch.float32, 64, None, False),
    "by bands": (nn.Conv2d(64, 64, 3, padding=1), torch.float32, 64, (0, 1), False),
    "bf16": (nn.Conv2d(64, 64, 3, padding=1).bfloat16(), torch.bfloat16, 64, None, False),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_layers_whose_arithmetic_it_is_go_by_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, dtype, side, padding, goes = KINDS[kind]
    if packing_of(layer, CpuDevice(), dtype) is None:
        pytest.skip("not packed here")
    states = last(numbers(1, layer.in_channels, side, side, dtype=dtype))
    outputs = []
    for gains in (False, True):
        monkeypatch.setattr(packed, "cpu_gains_by_winograd", lambda gains=gains: gains)
        kept = PackedConvolution.pack(layer, layer.weight.clone(), (1, side, side), padding)
        assert (kept[0].ndim == 2) is (gains and goes)
        outputs.append(PackedConvolution(layer, lambda kept=kept: kept, padding)(states))
    torch.testing.assert_close(*outputs, atol=1e-4 if goes else 0, rtol=0)


@pytest.mark.skipif(not machine.cpu_packs_weights("fp32"), reason="nothing is packed here")
@pytest.mark.full
def test_the_picture_is_the_same_within_1_of_255_and_every_plan_has_the_same_bits(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(ASTRONAUT, width=512, height=512, steps=2)
    used: list[tuple[int, ...]] = []
    convolved = winograd.convolve

    def convolve_(states: torch.Tensor, *arguments: Any) -> torch.Tensor:
        used.append(tuple(states.shape))
        return convolved(states, *arguments)

    monkeypatch.setattr(winograd, "convolve", convolve_)
    monkeypatch.setattr("tests.support.cpu_packs_for", lambda height, width, dtype: (1, height, width))
    monkeypatch.setattr(packed, "cpu_gains_by_winograd", lambda: True)
    resident, streamed = (draw(tiny, request=request, plan=plan) for plan in (RESIDENT, STREAMED))
    assert (2, 64, 32, 32) in used
    assert torch.equal(resident, streamed)
    used.clear()
    monkeypatch.setattr(packed, "cpu_gains_by_winograd", lambda: False)
    assert largest_difference(resident, draw(tiny, request=request, plan=RESIDENT)) <= 1 and not used
