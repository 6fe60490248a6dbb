"""Adapters beside a layer and merged into its weight: both are the changed weight in FP64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from safetensors.torch import save_file
from torch import nn

from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Adapter, Component, Origin, TensorInfo, WeightFile
from sdcli.models.header import read_header
from sdcli.weights import source
from sdcli.weights.adapters import Changes, Merged
from sdcli.weights.beside import Beside
from sdcli.weights.packed import packing_of
from sdcli.weights.source import Stored
from tests.loras import KINDS, MAGNITUDES, Random, changed, difference
from tests.networks import DTYPES, PACKED_DTYPES, numbers

CPU = torch.device("cpu")
ROLES = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid"}

LAYERS: dict[str, Callable[[], Any]] = {
    "linear": lambda: nn.Linear(32, 48),
    "without a bias": lambda: nn.Linear(32, 48, bias=False),
    "pointwise": lambda: nn.Conv2d(32, 48, 1),
    "convolution": lambda: nn.Conv2d(32, 48, 3, padding=1),
    "strided": lambda: nn.Conv2d(32, 48, 3, stride=2, padding=1),
    "uneven": lambda: nn.Conv2d(32, 48, (3, 5), stride=(2, 3), padding=(0, 2), dilation=(2, 1)),
    "wide": lambda: nn.Conv2d(64, 64, 3, padding=1),
    "gate": lambda: GEGLU(32, 24),
}


def states_for(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        some = numbers(2, layer.in_channels, 20, 23, dtype=dtype)
        return some.contiguous(memory_format=torch.channels_last)
    return numbers(2, 300, 32, dtype=dtype)


def made(
    kind: str, weight: torch.Tensor, magnitudes: str, amount: float, seed: int
) -> tuple[Adapter, dict[str, torch.Tensor], torch.Tensor]:
    """An adapter, its tensors by role, and the weight that it makes."""
    random = Random(seed)
    some, delta, _ = difference(kind, weight.shape, random)
    tensors = {ROLES.get(name, name.split("_", 1)[-1]): tensor for name, tensor in some.items()}
    magnitude = None
    if magnitudes:
        by_input = magnitudes == "inputs"
        magnitude = random(weight.shape[1] if by_input else weight.shape[0], deviation=0.5).abs() + 1
        tensors["input_magnitude" if by_input else "magnitude"] = magnitude
    one = Adapter("lora" if kind == "mid" else kind.split("_", maxsplit=1)[0], 0.7, amount, {})  # type: ignore[arg-type]
    return one, tensors, changed(weight, 0.7 * delta, amount, magnitude, magnitudes == "inputs")


def changes_for(weight: torch.Tensor, *asked: tuple[str, str, float]) -> tuple[Changes, torch.Tensor]:
    """Adapters for a weight, and the sum of what each makes of it."""
    adapters, tensors, total = [], {}, weight.double()
    for seed, (kind, magnitudes, amount) in enumerate(asked):
        one, some, whole = made(kind, weight, magnitudes, amount, seed)
        origins = {role: origin(f"{seed} {role}", tensor) for role, tensor in some.items()}
        tensors |= {f"{seed} {role}": tensor for role, tensor in some.items()}
        adapters.append(Adapter(one.kind, one.scale, one.weight, origins))
        total = total + whole - weight.double()
    return Changes(tuple(adapters), lambda o, device, dtype: tensors[o.stored].to(device, dtype)), total


def origin(name: str, tensor: torch.Tensor) -> Origin:
    return Origin(Path("x"), name, TensorInfo("F32", tuple(tensor.shape), 0, tensor.nbytes))


def computed(layer: Any, weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The layer with another weight, in FP64."""
    home = layer.proj if isinstance(layer, GEGLU) else layer
    bias = None if home.bias is None else home.bias.double()
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(states.double(), weight, bias, layer.stride, layer.padding, layer.dilation)
    output = F.linear(states.double(), weight, bias)
    if isinstance(layer, GEGLU):
        value, gate = output.chunk(2, dim=-1)
        output = value * F.gelu(gate)
    return output


def packed_with(layer: Any, changes: Changes, dtype: torch.dtype) -> Any:
    layer.to(dtype)
    home = layer.proj if isinstance(layer, GEGLU) else layer
    weight = home.weight.detach()
    kind = packing_of(layer, CpuDevice(), dtype)
    assert kind is not None
    packed = kind.pack(layer, weight, (1, 20, 23))
    forward = kind(layer, lambda: packed)
    forward.beside = Beside(home, changes, Stored(weight), CPU)
    return forward


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.skipif(not PACKED_DTYPES, reason="no layer is packed here")
@pytest.mark.parametrize("magnitudes", MAGNITUDES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.every(4)
def test_beside_a_packed_layer_it_is_the_changed_weight(name: str, kind: str, magnitudes: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    home = layer.proj if isinstance(layer, GEGLU) else layer
    changes, weight = changes_for(home.weight.detach(), (kind, magnitudes, 0.8), (kind, magnitudes, -0.3))
    states = states_for(layer, torch.float32)
    expected = computed(layer, weight, states)
    forward = packed_with(layer, changes, torch.float32)
    assert (forward(states).double() - expected).abs().max() < 1e-5 * expected.abs().max()
    for some in range(2):  # a sample is the same alone
        assert torch.equal(forward(states)[some], forward(states[some : some + 1])[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "gate"])
def test_in_half_precision_it_is_as_near_as_that_allows(name: str, kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().to(torch.bfloat16)
    changes, weight = changes_for(layer.weight.detach(), (kind, "", 0.8))
    states = states_for(layer, torch.bfloat16)
    expected = computed(layer, weight, states)
    output = Beside(layer, changes, Stored(layer.weight.detach()), CPU).add(states, layer(states))
    assert output.dtype is torch.bfloat16
    assert (output.double() - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.skipif(not PACKED_DTYPES, reason="no layer is packed here")
@pytest.mark.parametrize("magnitudes", MAGNITUDES)
def test_a_residual_and_a_shift_are_added_as_without(magnitudes: str) -> None:
    layer = nn.Conv2d(32, 48, 3, padding=1)
    changes, weight = changes_for(layer.weight.detach(), ("lora", magnitudes, 0.8))
    states, residual, shift = states_for(layer, torch.float32), numbers(2, 48, 20, 23), numbers(48, seed=3)
    residual = residual.contiguous(memory_format=torch.channels_last)
    before = states.clone(), residual.clone()
    expected = computed(layer, weight, states)
    forward = packed_with(layer, changes, torch.float32)
    assert torch.allclose(forward(states, residual).double(), expected + residual, atol=1e-3)
    assert torch.allclose(forward(states, shift=shift).double(), expected + shift[:, None, None], atol=1e-3)
    assert torch.equal(states, before[0]) and torch.equal(residual, before[1])


@pytest.mark.parametrize("magnitudes", MAGNITUDES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(48, 32), (48, 32, 3, 3), (48, 32, 1, 1)])
def test_merged_it_is_the_changed_weight_rounded_once(
    shape: tuple[int, ...], kind: str, magnitudes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdcli.weights.adapters.PIECE_BYTES", 10_000)  # several pieces
    plain = numbers(*shape).half()
    changes, weight = changes_for(plain, (kind, magnitudes, 0.8), ("lora", magnitudes, 0.5))
    merged = Merged(Stored(plain), changes)
    full = merged.cast(CPU, torch.float32)
    assert (full.double() - weight).abs().max() < 1e-5 * weight.abs().max()
    for dtype in DTYPES:
        room = torch.empty(*shape, dtype=dtype)
        if len(shape) == 4:
            room = room.contiguous(memory_format=torch.channels_last)
        assert torch.equal(merged.fill(room), full.to(dtype)) and merged.tensor is plain


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_every_stored_type_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    some = {"down": numbers(4, 8).to(dtype), "up": numbers(8, 4, seed=2).to(dtype), "w": numbers(8, 8)}
    save_file(some, tmp_path / "x.safetensors")
    file: WeightFile = read_header(tmp_path / "x.safetensors")
    origins = {name: Origin(file.path, name, info) for name, info in file.tensors.items()}
    part = Component("p", "P", {}, tmp_path, (file,), {"w": origins["w"]}, adapter_files=(file,))
    with source.Source(part) as opened:
        for name in ("down", "up"):
            read = opened.open(origins[name]).cast(CPU, torch.float32)
            assert torch.equal(read, some[name].float())
