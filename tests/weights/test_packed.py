"""Packed weights are the same weights: the same bits come out, wherever they lie."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from torch import nn

from sdcli import machine
from sdcli.devices.cpu import CpuDevice
from sdcli.devices.mps import MpsDevice
from sdcli.domain import DtypeName
from sdcli.uses import MapShape
from sdcli.weights.arena import Arena
from sdcli.weights.opaque import description, moved, opaque, raw_bytes
from sdcli.weights.packed import (
    SOME_MAP,
    Packed,
    PackedConvolution,
    PackedGate,
    PackedLinear,
    can_map,
    packing_of,
    plus,
    shifted,
)
from tests.networks import DTYPES, NARROW, PACKED_DTYPES, numbers

CPU = CpuDevice()
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

SHAPES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4},
]

packs = pytest.mark.skipif(not PACKED_DTYPES, reason="nothing is packed here")
maps = pytest.mark.skipif(not can_map(), reason="packed weights cannot be mapped here")


def packed(layer: nn.Module, weight: torch.Tensor, sees: MapShape = SOME_MAP) -> tuple[Packed, list[torch.Tensor]]:
    """The layer's packed forward, and the weights that it computes with."""
    kind = packing_of(layer, CPU, weight.dtype)
    assert kind is not None
    kept = kind.pack(layer, weight, sees)
    return kind(layer, lambda: kept), kept


@packs
@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(f"{k}={v}" for k, v in shape.items()))
@torch.no_grad()
def test_a_packed_convolution_is_the_plain_one(shape: dict[str, Any], bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 48, bias=bias, **shape).to(dtype)
    plain = layer.weight.to(memory_format=torch.channels_last)
    weight = layer.weight.clone()
    forward, _ = packed(layer, weight)
    weight.fill_(torch.nan)  # it is a copy that was packed
    for batch, height, width in ((1, 16, 16), (2, 9, 13)):
        states = numbers(batch, 32, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
        geometry: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
        expected = nn.functional.conv2d(states, plain, layer.bias, *geometry)
        # the same bits with AVX-512 and AMX; with AVX2 the library has another kernel for it, and another order of sums
        torch.testing.assert_close(forward(states), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@packs
@torch.no_grad()
def test_padding_may_be_other_than_the_layer_s() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    kept = PackedConvolution.pack(layer, layer.weight.clone(), padding=(0, 1))
    states = numbers(1, 16, 6, 7)
    expected = nn.functional.conv2d(states, layer.weight, layer.bias, padding=(0, 1))
    torch.testing.assert_close(PackedConvolution(layer, lambda: kept, (0, 1))(states), expected, atol=1e-5, rtol=0)


def layers(dtype: torch.dtype) -> list[tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of each kind: the layer, its weight, its input, and a residual."""
    torch.manual_seed(0)
    narrow, linear, gate = nn.Conv2d(16, 24, 3, padding=1), nn.Linear(32, 24), GEGLU(32, 24)
    tokens, picture = numbers(2, 9, 32, dtype=dtype), numbers(2, 16, 6, 7, dtype=dtype)
    picture = picture.contiguous(memory_format=torch.channels_last)
    after = numbers(2, 24, 6, 7, seed=3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return [
        (narrow.to(dtype), narrow.weight, picture, after),
        (linear.to(dtype), linear.weight, tokens, numbers(2, 9, 24, seed=3, dtype=dtype)),
        (gate.to(dtype), gate.proj.weight, tokens, torch.empty(0)),
    ]


@packs
@pytest.mark.parametrize("sees", [SOME_MAP, (1, 3, 3)], ids=["many places", "few places"])
@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@torch.no_grad()
def test_every_kind_is_the_layer_and_adds_a_residual(dtype: torch.dtype, sees: MapShape) -> None:
    for layer, weight, states, residual in layers(dtype):
        forward, kept = packed(layer, weight.clone(), sees)
        assert all(one.ndim == 4 for one in kept) == (sees != SOME_MAP or isinstance(layer, nn.Conv2d))
        expected = layer(states)
        torch.testing.assert_close(forward(states), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
        if not len(residual):
            continue
        before = residual.clone()
        total = plus(layer, states, residual)
        torch.testing.assert_close(total, expected + residual)
        layer.forward = forward
        torch.testing.assert_close(plus(layer, states, residual), total, atol=CLOSE[dtype], rtol=CLOSE[dtype])
        assert torch.equal(residual, before), "it may be a skip connection"


@packs
@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@torch.no_grad()
def test_a_map_of_one_pixel_has_its_residual_added_too(dtype: torch.dtype) -> None:
    convolution = nn.Conv2d(16, 16, 3, padding=1).to(dtype)
    states, residual = numbers(2, 16, 1, 1, dtype=dtype), numbers(2, 16, 1, 1, seed=1, dtype=dtype)
    expected, before = convolution(states) + residual, residual.clone()
    forward, _ = packed(convolution, convolution.weight.clone(), (1, 1, 1))
    convolution.forward = forward
    torch.testing.assert_close(plus(convolution, states, residual), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
    assert torch.equal(residual, before)


@packs
@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@torch.no_grad()
def test_a_convolution_s_shift_is_added_to_every_pixel(dtype: torch.dtype) -> None:
    convolution = nn.Conv2d(16, 24, 3, padding=1).to(dtype)
    states, shift = numbers(2, 16, 5, 7, dtype=dtype), numbers(24, dtype=dtype)
    expected = convolution(states) + shift[:, None, None]
    assert torch.equal(shifted(convolution, states, [shift]), expected)
    bias = convolution.bias.clone()
    convolution.forward, _ = packed(convolution, convolution.weight.clone())
    output = shifted(convolution, states, [shift])
    torch.testing.assert_close(output, expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
    assert torch.equal(convolution.bias, bias)


@packs
@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@torch.no_grad()
def test_samples_with_shifts_of_their_own_have_the_bits_that_each_has_alone(dtype: torch.dtype) -> None:
    convolution = nn.Conv2d(16, 24, 3, padding=1).to(dtype)
    states, shifts = numbers(2, 16, 5, 7, dtype=dtype), [numbers(24, seed=seed, dtype=dtype) for seed in (3, 4)]
    expected = convolution(states) + torch.stack(shifts)[:, :, None, None]
    torch.testing.assert_close(shifted(convolution, states, shifts), expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
    convolution.forward, _ = packed(convolution, convolution.weight.clone())
    together = shifted(convolution, states, shifts)
    torch.testing.assert_close(together, expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])
    for number, shift in enumerate(shifts):
        some = slice(number, number + 1)
        assert torch.equal(together[some], shifted(convolution, states[some], [shift]))


@pytest.mark.skipif(torch.bfloat16 not in PACKED_DTYPES, reason="this processor has no kernels for bf16")
@torch.no_grad()
def test_a_packed_residual_is_added_before_it_is_rounded() -> None:
    layer = nn.Linear(64, 64).to(torch.bfloat16)
    forward, _ = packed(layer, layer.weight.clone())
    states, residual = numbers(1, 50, 64, dtype=torch.bfloat16), numbers(1, 50, 64, seed=2, dtype=torch.bfloat16)
    exact = layer.double()(states.double()) + residual.double()
    layer.to(torch.bfloat16)
    once = (forward(states, residual).double() - exact).abs().mean()
    assert once < (forward(states).add_(residual).double() - exact).abs().mean()


@maps
@pytest.mark.parametrize("dtype", PACKED_DTYPES)
@torch.no_grad()
def test_packed_bytes_give_the_same_wherever_they_lie(dtype: torch.dtype) -> None:
    for layer, weight, states, _ in layers(dtype):
        forward, kept = packed(layer, weight.clone())
        arena = Arena(2**20)
        there = [moved(one, arena) for one in kept]
        for one, other in zip(kept, there, strict=True):
            assert (one.shape, one.dtype, description(one)) == (other.shape, other.dtype, description(other))
            assert bytes(raw_bytes(one)) == bytes(raw_bytes(other))
            assert torch.ops.mkldnn.data_ptr(one) != torch.ops.mkldnn.data_ptr(other)
        forward._weights, before = there.copy, forward(states)
        assert torch.equal(forward(states), before)


@maps
@torch.no_grad()
def test_a_packed_weight_made_of_bytes_is_freed_with_them() -> None:
    """torch._C._aoti.alloc_tensor_by_stealing_from_void_ptr keeps a reference for ever; its plural does not."""
    (kept,) = PackedLinear.pack(nn.Linear(16, 16), torch.ones(16, 16))
    room = torch.frombuffer(bytearray(raw_bytes(kept)), dtype=torch.uint8)
    one = opaque(room.data_ptr(), (16, 16), torch.float32, description(kept), room)
    dead = weakref.ref(one), weakref.ref(room)
    del room
    assert dead[1]() is not None, "the bytes live as long as the weight"
    del one
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same"),
        type("Subclass", (nn.Conv2d,), {})(4, 4, 3),
        type("Subclass", (nn.Linear,), {})(4, 4),
        nn.Embedding(4, 4),
    ],
    ids=["1-D", "transposed", "circular", "padding by name", "a class of its own", "another", "a table"],
)
def test_other_layers_are_left_alone(layer: nn.Module) -> None:
    assert packing_of(layer, CPU, torch.float32) is None


@packs
def test_only_the_cpu_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {nn.Conv2d(4, 4, 3): PackedConvolution, nn.Linear(4, 4): PackedLinear, GEGLU(4, 4): PackedGate}
    for layer, kind in kinds.items():
        assert packing_of(layer, CPU, NARROW) is kind
        assert packing_of(layer, MpsDevice(), NARROW) is None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert {packing_of(layer, CPU, NARROW) for layer in kinds} == {None}


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_packed_is_what_planning_counts_on(dtype: torch.dtype) -> None:
    """The worker asks torch, the host, which has none, the processor's flags."""
    name: DtypeName = "bf16" if dtype is torch.bfloat16 else "fp32"
    assert (packing_of(nn.Linear(4, 4), CPU, dtype) is not None) == machine.cpu_packs_weights(name) or not can_map()


def test_a_type_that_the_processor_has_no_kernels_for_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, asks in ((torch.bfloat16, "_is_mkldnn_bf16_supported"), (torch.float16, "_is_mkldnn_fp16_supported")):
        for has in (True, False):
            monkeypatch.setattr(torch.ops.mkldnn, asks, lambda has=has: has)
            assert (packing_of(nn.Linear(4, 4), CPU, dtype) is not None) == (has and bool(PACKED_DTYPES))
    assert packing_of(nn.Linear(4, 4), CPU, torch.float64) is None


def test_where_torch_lacks_the_operators_nothing_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_map.__wrapped__()


PRODUCTS = """
import sys, torch
from torch import nn
from sdcli.weights.packed import PackedLinear
from sdcli.devices.cpu import CpuDevice
torch.set_grad_enabled(False)

def anonymous():
    return int(open("/proc/self/status").read().split("RssAnon:")[1].split()[0]) / 1024

CpuDevice().prepare(None)
layers = [nn.Linear(256, 256 + 32 * more, bias=False) for more in range(16)]
kept = [PackedLinear.pack(layer, layer.weight, (1, 1, int(sys.argv[1]))) for layer in layers]
states = torch.ones(1, 64, 256)
torch.nn.functional.linear(states, torch.ones(8, 256))
begun = anonymous()
for layer, weights in zip(layers, kept):
    PackedLinear(layer, weights.copy)(states)
CpuDevice().release()
print(anonymous() - begun)
"""


@packs
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.full
def test_the_library_keeps_less_for_products_of_few_rows() -> None:
    few, many = (
        float(subprocess.run([sys.executable, "-P", "-c", PRODUCTS, rows], capture_output=True, check=True).stdout)
        for rows in ("64", "4096")
    )
    assert many > 5, "16 products, of which the library keeps more than 0.5 MiB each"
    assert few < many / 2


LAYERS = """
import sys, torch
from torch import nn
from sdcli import machine
from sdcli.weights.packed import PackedConvolution
torch.set_grad_enabled(False)
for channels, out, side in ((1280, 1280, 12), (1920, 640, 24), (640, 960, 40), (320, 960, 64)):
    sees = machine.cpu_packs_for(side, side, "fp32")
    layer, states = nn.Conv2d(channels, out, 3, padding=1), torch.ones(sees[0], channels, *sees[1:])
    kept = PackedConvolution.pack(layer, layer.weight.clone(), sees)
    states = states.contiguous(memory_format=torch.channels_last)
    print("now", channels, flush=True)
    PackedConvolution(layer, lambda: kept)(states)
    print("done", flush=True)
"""


@packs
@pytest.mark.full
def test_weights_laid_out_for_a_map_are_not_laid_out_again_in_every_call() -> None:
    """By the library's own account. It had taken a fifth of a step's time, and memory as large as a weight."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    command = [sys.executable, "-P", "-c", LAYERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    calls = [part.partition("done")[0] for part in done.stdout.split("now")[1:]]
    assert len(calls) == 4
    for told in calls:
        assert ",exec,cpu,convolution," in told
        assert ",exec,cpu,reorder," not in told
