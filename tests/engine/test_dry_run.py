"""A run without memory counts what a real one takes: bytes, the order of use, what layers see, and operations."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdcli.devices.cpu import CpuDevice
from sdcli.engine.dry_run import HEAP_BYTES, META, DryRun
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder
from sdcli.families.sd.denoiser import borrow_denoiser
from sdcli.models.opened import open_model
from sdcli.plan.ways import SCRATCHES, way_of_steps
from sdcli.uses import WeightUse
from tests.networks import DTYPE_NAMES, DTYPES, borrowing, numbers
from tests.support import ASTRONAUT, RESIDENT, counted

LARGE = replace(ASTRONAUT, width=256, height=192)
SIDES = 24, 32


class Alive(TorchDispatchMode):
    """The most bytes that real tensors took at once, but for weights; packed ones have no storage, but a size."""

    def __init__(self, weights: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._packed: set[int] = set()
        self._known = {tensor.untyped_storage()._cdata for tensor in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(output, torch.Tensor):
                self._note(output)
        return outputs

    def _note(self, tensor: torch.Tensor) -> None:
        thing: Any = tensor if tensor.is_mkldnn else tensor.untyped_storage()
        key = id(tensor) if tensor.is_mkldnn else thing._cdata
        nbytes = tensor.numel() * tensor.element_size() if tensor.is_mkldnn else thing.nbytes()
        address = torch.ops.mkldnn.data_ptr(tensor) if tensor.is_mkldnn else thing.data_ptr()
        if key in self._known or (not tensor.is_mkldnn and address in self._packed):  # seen by its bytes
            return
        self._known.add(key)
        if tensor.is_mkldnn:
            self._packed.add(address)
        self.bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(thing, self._gone, key, nbytes, address)

    def _gone(self, key: int, nbytes: int, address: int) -> None:
        self._known.discard(key)
        self._packed.discard(address)
        self.bytes -= nbytes


# Bytes


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_the_denoiser_takes_what_is_counted(tiny: Path, dtype: torch.dtype, samples: int) -> None:
    unet, fused = open_model("m", tiny).parts["unet"], CpuDevice().fused_attention(dtype)
    latents, context = numbers(1, 4, *SIDES), numbers(2, 77, 32, dtype=dtype)
    for scratch_bytes in (0,) if fused else SCRATCHES:
        with borrow_denoiser(unet, borrowing(unet, RESIDENT, dtype, scratch_bytes=scratch_bytes)) as denoiser:
            alive = Alive(denoiser.unet.parameters())
            with alive:  # latents and context count as well
                denoiser(latents.expand(samples, -1, -1, -1), torch.tensor(500), {"tokens": context[:samples]})
        way = counted(tiny, LARGE, DTYPE_NAMES[dtype])["denoise"].ways[way_of_steps(samples, scratch_bytes)]
        assert way.live_bytes == pytest.approx(alive.peak_bytes, rel=0.02)


@pytest.mark.parametrize("stage", ["decode", "encode_image"])
@pytest.mark.parametrize("way", AUTOENCODER_WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_the_autoencoder_takes_what_is_counted(tiny: Path, dtype: torch.dtype, way: str, stage: str) -> None:
    vae, borrow = open_model("m", tiny).parts["vae"], borrow_decoder if stage == "decode" else borrow_encoder
    given = numbers(1, 4, *SIDES) if stage == "decode" else numbers(1, 3, LARGE.height, LARGE.width)
    with borrow(vae, borrowing(vae, dtype=dtype, way=way)) as run, Alive() as alive:  # type: ignore[operator]
        run(given)
    counts = counted(tiny, replace(LARGE, strength=0.5), DTYPE_NAMES[dtype])[stage]
    assert counts.ways[way].live_bytes == pytest.approx(alive.peak_bytes, rel=0.02)


@torch.no_grad()
def test_what_is_alive_at_once_is_counted_and_what_is_large_is_not_in_the_heap() -> None:
    with DryRun() as run:
        first = torch.empty(1000, device=META)
        second = first + 1
        del first
        view = second[:10].view(5, 2)
        third = torch.empty(500, device=META)
        del second
    assert run.live_bytes == 6000 and run.peak_bytes == 8000, "a view keeps what it looks at"
    del view, third
    assert run.live_bytes == run.heap_bytes == 0
    with DryRun() as run:
        kept = [torch.empty(size, dtype=torch.uint8, device=META) for size in (HEAP_BYTES, HEAP_BYTES - 1)]
    assert (run.peak_bytes, run.heap_peak_bytes) == (2 * HEAP_BYTES - 1, HEAP_BYTES - 1) and len(kept) == 2


def test_weights_are_not_counted_and_copies_of_them_are_twice() -> None:
    layer = nn.Linear(8, 4, bias=False, device=META)
    run = DryRun()
    run.know("part", layer)
    run.copies("part", "weight", layer)
    with run:
        output = layer(torch.empty(3, 8, device=META))
        assert run.peak_bytes == 4 * (3 * 8 + 3 * 4)
        copy = vars(layer)["fetch"]()
    assert run.peak_bytes == run.live_bytes + 4 * 32 == 4 * (3 * 4 + 2 * 32) and len(output) == len(copy) - 1
    assert [use.use for use in run.weights] == ["copied"]


# What layers see


def seen_by_hooks(module: nn.Module, run: Any) -> dict[str, tuple[tuple[int, int], int]]:
    """Of each layer in the order of use: height and width, or one and tokens, of the first map; all places together."""
    seen: dict[str, tuple[tuple[int, int], int]] = {}

    def note(name: str, layer: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            sees, places = (given[0].shape[2], given[0].shape[3]), output.numel() // output.shape[1]
        else:
            sees, places = (1, given[0].numel() // given[0].shape[-1]), output.numel() // output.shape[-1]
        before = seen.get(f"{name}.weight")
        seen[f"{name}.weight"] = (sees, places) if before is None else (before[0], before[1] + places)

    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda *told, name=name: note(name, *told))
    run()
    return seen


@pytest.mark.parametrize("size", [(64, 64), (72, 104), (256, 192)], ids=str)
@torch.no_grad()
def test_the_order_of_use_and_what_each_layer_sees_are_those_of_a_real_step(tiny: Path, size: tuple[int, int]) -> None:
    width, height = size
    unet, latents = open_model("m", tiny).parts["unet"], numbers(1, 4, height // 8, width // 8)
    with borrow_denoiser(unet, borrowing(unet, RESIDENT, scratch_bytes=SCRATCHES[0])) as denoiser:
        context = {"tokens": numbers(1, 77, 32)}
        seen = seen_by_hooks(denoiser.unet, lambda: denoiser(latents, torch.tensor(500), context))
        every = {name for name, _ in denoiser.unet.named_parameters()}
    uses = counted(tiny, replace(ASTRONAUT, width=width, height=height))["denoise"].weights
    matrices = [use for use in uses if use.use == "matrix"]
    assert [use.name for use in matrices] == [*seen]
    assert {use.name: (use.sees, use.places) for use in matrices} == seen
    assert {use.name for use in uses} == every and all(use.use == "vector" for use in uses if use not in matrices)


def test_words_are_looked_up_and_the_autoencoder_s_convolutions_are_copied(tiny: Path) -> None:
    counts = counted(tiny, replace(ASTRONAUT, strength=0.5))
    tables = {use.name for use in counts["encode_prompt"].weights if use.use == "table"}
    assert tables == {f"embeddings.{name}_embedding.weight" for name in ("token", "position")}
    for stage, half in (("decode", ("decoder.", "post_quant_conv.")), ("encode_image", ("encoder.", "quant_conv."))):
        uses = counts[stage].weights
        assert all(use.name.startswith(half) for use in uses)
        assert {len(use.shape) for use in uses if use.use == "copied"} == {4}
        assert {len(use.shape) for use in uses if use.use == "matrix"} == {2}, "of its attention"


# Operations


def flops_of(run: Any) -> tuple[float, int]:
    counts = DryRun()
    with counts:
        run()
    return counts.flops, len(counts.kernels)


def test_operations_of_one_layer_are_those_of_the_formula() -> None:
    convolution = nn.Conv2d(6, 10, 3, stride=2, padding=1, device=META)
    assert flops_of(lambda: convolution(torch.empty(2, 6, 9, 14, device=META))) == (2 * 2 * 10 * 5 * 7 * 6 * 9, 1)
    grouped = nn.Conv2d(6, 12, 1, groups=3, device=META)
    assert flops_of(lambda: grouped(torch.empty(1, 6, 4, 5, device=META)))[0] == 2 * 12 * 4 * 5 * 2
    for bias in (True, False):
        linear = nn.Linear(6, 10, bias=bias, device=META)
        assert flops_of(lambda linear=linear: linear(torch.empty(2, 7, 6, device=META)))[0] == 2 * 2 * 7 * 6 * 10
    query, key, value = (torch.empty(2, 3, *sides, device=META) for sides in ((11, 4), (7, 4), (7, 5)))
    attended = 2 * 2 * 3 * 11 * 7 * (4 + 5)
    assert flops_of(lambda: F.scaled_dot_product_attention(query, key, value))[0] == attended


def test_kernels_are_counted_by_their_shapes() -> None:
    layers = [nn.Linear(6, 10, device=META), nn.Linear(6, 10, device=META), nn.Linear(6, 8, device=META)]
    states, more = torch.empty(7, 6, device=META), torch.empty(9, 6, device=META)
    assert flops_of(lambda: [layer(states) for layer in layers])[1] == 2
    assert flops_of(lambda: [layer(some) for layer in layers for some in (states, more)])[1] == 4


@torch.no_grad()
def test_operations_of_a_step_are_those_that_torch_counts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    attended, attend = [], F.scaled_dot_product_attention

    def noted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        attended.append(4 * query.numel() * key.shape[-2])
        return attend(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    unet, latents, fused = open_model("m", tiny).parts["unet"], numbers(1, 4, *SIDES), CpuDevice().fused_attention
    scratch_bytes = 0 if fused(torch.float32) else SCRATCHES[0]
    with (
        borrow_denoiser(unet, borrowing(unet, RESIDENT, scratch_bytes=scratch_bytes)) as denoiser,
        FlopCounterMode(display=False) as counter,
    ):
        denoiser(latents, torch.tensor(500), {"tokens": numbers(1, 77, 32)})
    others = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for name, flops in others.items() if "attention" not in name)
    monkeypatch.undo()
    way = counted(tiny, LARGE)["denoise"].ways[way_of_steps(1, scratch_bytes)]
    assert attended and way.flops == products + sum(attended)


def test_uses_are_told_apart_by_part_and_kept_though_nothing_saw_them() -> None:
    module, run = nn.ModuleDict({"used": nn.Linear(4, 4, device=META), "not": nn.Linear(4, 4, device=META)}), DryRun()
    run.know("one", module["used"])
    run.know("two", module, ("not.",))
    with run:
        module["used"](torch.empty(5, 4, device=META))
    assert run.weights == (
        WeightUse("one", "weight", (4, 4), "matrix", (1, 5), 5),
        WeightUse("one", "bias", (4,), "vector", (1, 1), 0),
        WeightUse("two", "not.weight", (4, 4), "matrix", (1, 1), 0),
        WeightUse("two", "not.bias", (4,), "vector", (1, 1), 0),
    )
