"""What adapters take beside layers of the size of Stable Diffusion 1.5's, as a dry run counts it, and as it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Adapter, Origin, TensorInfo
from sdcli.engine.dry_run import META, DryRun
from sdcli.units import MIB
from sdcli.weights.adapters import PIECE_BYTES, Changes
from sdcli.weights.beside import Beside
from sdcli.weights.dry_adapters import add_dry
from sdcli.weights.packed import packing_of

RANK, CPU = 32, torch.device("cpu")

SIZES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "the widest gate": (nn.Linear(1280, 10240, device=META), (1, 256, 1280)),
    "the first level's gate": (nn.Linear(320, 2560, device=META), (1, 1024, 320)),
    "attention": (nn.Linear(320, 320, device=META), (1, 4096, 320)),
    "the largest kernel": (nn.Conv2d(2560, 1280, 3, padding=1, device=META), (2, 2560, 16, 16)),
    "the largest map": (nn.Conv2d(960, 320, 3, padding=1, device=META), (2, 960, 64, 64)),
}


def lora(weight: torch.Tensor) -> tuple[Adapter]:
    out, into, *kernel = weight.shape
    shapes = {"down": (RANK, into, *kernel), "up": (out, RANK, *(1 for _ in kernel))}
    tensors = {
        role: Origin(Path("x"), role, TensorInfo("F16", shape, 0, 2 * torch.Size(shape).numel()))
        for role, shape in shapes.items()
    }
    return (Adapter("lora", 1.0, 1.0, tensors),)


def made(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: torch.device = META) -> torch.Tensor:
    """States of ones, a map in channels last."""
    states = torch.ones(shape, dtype=dtype, device=device)
    return states.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else states


def alive(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    last = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    with DryRun() as run:
        layer(torch.empty(shape, dtype=dtype, device=META, memory_format=last))
    return run.peak_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_a_lora_beside_a_layer_takes_little(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.weights.dry_adapters.packing_of", lambda *_: True)
    layer, shape = SIZES[name]
    layer = type(layer)(*_sides(layer), device=META, dtype=dtype)
    plain = alive(layer, shape, dtype)
    add_dry(layer, lora(layer.weight), CpuDevice(), dtype, packed=True)
    assert 0 < alive(layer, shape, dtype) - plain < 9 * MIB


def _sides(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels, 3, 1, 1
    assert isinstance(layer, nn.Linear)
    return layer.in_features, layer.out_features


def test_merging_is_counted_while_the_layer_runs() -> None:
    layer = nn.Linear(8, 8, device=META)
    add_dry(layer, lora(layer.weight), CpuDevice(), torch.float32, packed=False)
    assert alive(layer, (2, 8)) > 5 * PIECE_BYTES


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the highest footprint")
@pytest.mark.skipif(packing_of(nn.Linear(1, 1), CpuDevice(), torch.float32) is None, reason="nothing goes beside here")
@pytest.mark.parametrize("name", ["the widest gate", "the largest kernel", "the largest map"])
def test_what_is_counted_is_what_is_taken(name: str) -> None:
    """The highest footprint of the real thing is no higher, but for what the library keeps for itself."""
    import sdcli.weights.dry_adapters as dry

    layer, shape = SIZES[name]
    changes = Changes(lora(layer.weight), dry._without_numbers)
    sides = layer(made(shape)).shape
    with DryRun() as run:
        states, output = torch.empty(shape, device=META), torch.empty(sides, device=META)
        if len(shape) == 4:
            states, output = states.to(memory_format=torch.channels_last), made(sides)
        before = run.live_bytes
        Beside(layer, changes, None, META).add(states, output)

    def read(origin: Origin, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.ones(origin.shape, dtype=dtype)

    given, real = made(shape, device=CPU), made(sides, device=CPU)
    beside = Beside(layer, Changes(changes.adapters, read), None, CPU)
    with torch.inference_mode():
        beside.add(given, real)  # what the library makes once
        Path("/proc/self/clear_refs").write_text("5")
        held = _status("VmRSS")
        beside.add(given, real)
    assert _status("VmHWM") - held <= run.peak_bytes - before + MIB


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024
