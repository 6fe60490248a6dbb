"""Weights by the slice: the same product as of the whole weight, in less memory, and counted as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Adapter, Component, Origin, TensorInfo
from sdcli.engine.dry_run import META, DryRun
from sdcli.models.header import read_header
from sdcli.uses import WeightRow
from sdcli.weights import adapters, sliced
from sdcli.weights.adapters import Changes, Merged
from sdcli.weights.lend import lend_weights
from sdcli.weights.sliced import ALL, StoredSlices, add_product, chunks, product, slices_of, would_lie
from sdcli.weights.source import Stored
from tests.networks import numbers

OUT, IN = 96, 64
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced, "PIECE_BYTES", 40 * IN * 4)


def component(folder: Path, weight: torch.Tensor) -> Component:
    """A part of one layer, in a file."""
    save_file({"weight": weight, "bias": numbers(OUT, seed=5).to(weight.dtype)}, folder / "m.safetensors")
    file = read_header(folder / "m.safetensors")
    tensors = {name: Origin(file.path, name, info) for name, info in file.tensors.items()}
    return Component("part", "Linear", {}, folder, (file,), tensors)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    return numbers(OUT, IN).to(request.param)


@pytest.fixture
def layer(tmp_path: Path, weight: torch.Tensor) -> Iterator[nn.Linear]:
    """A layer that computes in FP32, and whose weight is given out by the slice."""
    rows = [
        WeightRow("part", "weight", (OUT, IN), "sliced", (1, 1, 1), False),
        WeightRow("part", "bias", (OUT,), "vector", (1, 1, 1), True),
    ]
    module = nn.Linear(IN, OUT, device=META)
    with lend_weights(module, component(tmp_path, weight), rows, CpuDevice(), torch.float32) as lent:
        yield module
        assert lent.bytes_read > 0
    assert "slices" not in vars(module) and module.weight.is_meta


def test_a_product_is_that_of_the_whole_weight(layer: nn.Linear, weight: torch.Tensor) -> None:
    states, bias = numbers(7, IN, seed=2), numbers(OUT, seed=5).to(weight.dtype).float()
    assert slices_of(layer).lies == (weight.dtype is torch.float32)
    whole = F.linear(states, weight.float(), bias)
    torch.testing.assert_close(product(states, layer), whole)
    torch.testing.assert_close(product(states, layer, slice(20, 90)), whole[:, 20:90])
    assert torch.equal(product(states, layer, slice(40, 80)), product(states, layer)[:, 40:80])


def test_columns_add_up(layer: nn.Linear, weight: torch.Tensor) -> None:
    states, output = numbers(7, IN, seed=2), numbers(7, OUT, seed=3)
    expected = output + states @ weight.float().T
    for columns in (slice(0, 10), slice(10, IN)):
        assert add_product(output, states[:, columns], layer, columns) is output
    torch.testing.assert_close(output, expected)


def test_a_slice_is_a_view_of_the_file_or_a_copy_of_it_alone(layer: nn.Linear, weight: torch.Tensor) -> None:
    some = slices_of(layer)(slice(8, 12), slice(3, 9))
    assert torch.equal(some, weight[8:12, 3:9].float())
    held = some.untyped_storage().nbytes()
    assert held == 4 * some.numel() if not slices_of(layer).lies else held >= 4 * OUT * IN


@pytest.mark.parametrize("stays", [False, True])
def test_a_weight_that_stays_gives_views_of_one_copy_and_the_same_bits(
    tmp_path: Path, weight: torch.Tensor, stays: bool
) -> None:
    dtype = next(one for one in (torch.float32, torch.bfloat16) if one is not weight.dtype)
    part, states = component(tmp_path, weight), numbers(7, IN, seed=2).to(dtype)
    made = []
    for stay in (False, stays):
        rows = [
            WeightRow("part", "weight", (OUT, IN), "sliced", (1, 1, 1), stay),
            WeightRow("part", "bias", (OUT,), "vector", (1, 1, 1), True),
        ]
        module = nn.Linear(IN, OUT, device=META)
        with lend_weights(module, part, rows, CpuDevice(), dtype) as lent:
            added = add_product(numbers(7, OUT, seed=3).to(dtype), states, module)
            made.append((product(states, module), product(states, module, slice(20, 90)), added))
            some, again = (slices_of(module)(slice(8, 12)) for _ in range(2))
            assert (some.data_ptr() == again.data_ptr()) == stay == (lent.bytes_read == 0)
        assert "slices" not in vars(module) and module.weight.is_meta
    assert all(map(torch.equal, *made))


def test_a_layer_that_nobody_lent_has_slices_too() -> None:
    layer, states = nn.Linear(IN, OUT, bias=False), numbers(3, IN)
    with torch.no_grad():
        assert torch.equal(product(states, layer), layer(states)) and slices_of(layer).lies


@pytest.mark.parametrize(("tokens", "sizes"), [(0, []), (7, [7]), (512, [512]), (513, [257, 256]), (1536, [512] * 3)])
def test_chunks_of_tokens_are_about_equal(tokens: int, sizes: list[int]) -> None:
    cut = list(chunks(tokens, nn.Linear(2, 2), 5))
    assert [some.stop - some.start for some in cut] == sizes and (
        not cut or (cut[0].start, cut[-1].stop) == (5, 5 + tokens)
    )


@torch.no_grad()
def test_what_is_cast_is_counted_and_what_lies_is_not() -> None:
    for lies in (True, False):
        layer, run = nn.Linear(IN, OUT, bias=False, device=META), DryRun()
        run.know("part", layer)
        run.slices("part", "weight", layer, lies)
        with run:
            output = product(torch.empty(7, IN, device=META), layer)
        piece = 0 if lies else 4 * 40 * IN
        assert run.peak_bytes == 4 * 7 * (IN + OUT) + piece and run.flops == 2 * 7 * IN * OUT and len(output) == 7
        assert [use.use for use in run.weights] == ["sliced"]


def test_what_lies_is_known_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    origin = Origin(Path("m.safetensors"), "weight", TensorInfo("BF16", (2, 2), 0, 8))
    monkeypatch.setattr(sliced, "lies_in_memory", lambda path: False)
    assert would_lie(origin, torch.bfloat16, on_cpu=True)
    assert not would_lie(origin, torch.float32, on_cpu=True) and not would_lie(origin, torch.bfloat16, on_cpu=False)
    monkeypatch.setattr(sliced, "lies_in_memory", lambda path: True)
    assert not would_lie(origin, torch.bfloat16, on_cpu=True)


def test_slices_of_a_changed_weight_are_those_of_the_merged_one() -> None:
    base, tensors = numbers(OUT, IN).to(torch.bfloat16), {"up": numbers(OUT, 3, seed=2), "down": numbers(3, IN, seed=3)}
    origins = {name: Origin(Path(name), name, TensorInfo("F32", tuple(t.shape), 0, 0)) for name, t in tensors.items()}
    adapter = Adapter("lora", scale=0.5, weight=0.8, tensors=origins)
    merged = Merged(Stored(base), Changes((adapter,), lambda origin, device, dtype: tensors[origin.stored].to(dtype)))
    whole = base.float() + 0.4 * tensors["up"] @ tensors["down"]
    slices = StoredSlices(merged, CPU, torch.bfloat16)
    assert not slices.lies, "though it is of the arithmetic's type"
    torch.testing.assert_close(slices(slice(8, 40), slice(3, 9)), whole[8:40, 3:9].to(torch.bfloat16))
    assert torch.equal(slices(), merged.cast(CPU, torch.bfloat16))


@pytest.mark.parametrize("rank", [4, 32])
def test_any_slice_of_a_changed_weight_has_the_bits_of_all_of_it(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "PIECE_BYTES", 7 * 256 * 4)
    tensors = {"up": numbers(OUT, rank, seed=2), "down": numbers(rank, 256, seed=3)}
    origins = {name: Origin(Path(name), name, TensorInfo("F32", tuple(t.shape), 0, 0)) for name, t in tensors.items()}
    adapter = Adapter("lora", scale=0.5, weight=0.8, tensors=origins)
    changes = Changes((adapter,), lambda origin, device, dtype: tensors[origin.stored].to(dtype))
    merged = Merged(Stored(numbers(OUT, 256)), changes)
    whole = merged.cast(CPU, torch.float32)
    for first, last in ((5, 6), (0, 1), (13, 14), (3, 9), (6, 22), (OUT - 1, OUT), (0, OUT)):
        assert torch.equal(merged.slice_of(slice(first, last), ALL, CPU, torch.float32), whole[first:last])
