"""The denoiser gives the same bits however its weights are lent, and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from sdcli.blocks import frugal
from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Component, GiveBack, Plan
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder
from sdcli.families.sd.denoiser import Denoiser, borrow_denoiser, build_unet
from sdcli.families.sd.text_encoder import borrow_text_encoder
from sdcli.models.opened import open_model
from sdcli.weights.lend import packer, packings_of
from sdcli.weights.packed import can_map
from sdcli.weights.prepared import PreparedCopy, make_copy
from tests import support
from tests.networks import (
    DTYPE_NAMES,
    DTYPES,
    NARROW,
    PARTIAL,
    PLANS,
    WAYS,
    borrowing,
    inputs,
    matrices,
    packed_layers,
    table,
)
from tests.support import ASTRONAUT, RESIDENT, STREAMED, tables

CPU = CpuDevice()
ways = pytest.mark.parametrize(("plan", "copied"), WAYS, ids=[f"{plan.residency} {copied}" for plan, copied in WAYS])
maps = pytest.mark.skipif(not can_map(), reason="packed weights cannot be mapped here")


Copies = dict[torch.dtype, PreparedCopy | None]


@pytest.fixture(scope="module")
def unet(tiny: Path) -> Component:
    return open_model("m", tiny).parts["unet"]


@pytest.fixture(scope="module")
def copies(unet: Component, tmp_path_factory: pytest.TempPathFactory) -> Copies:
    folder, module, made = tmp_path_factory.mktemp("prepared"), build_unet(unet), Copies()
    for dtype in DTYPES:
        with packer(module, unet, table(unet, 0, dtype), CPU, dtype) as (names, pack):
            made[dtype] = make_copy(folder / f"{dtype}-key", names, pack) if names and can_map() else None
    return made


def lending(
    unet: Component,
    plan: Plan = RESIDENT,
    dtype: torch.dtype = torch.float32,
    copy: PreparedCopy | None = None,
    **more: Any,
) -> AbstractContextManager[Denoiser]:
    """The denoiser as the steps borrow it."""
    return borrow_denoiser(unet, borrowing(unet, plan, dtype, prepared=copy, repeats=True, **more))


@torch.no_grad()
def denoised(denoiser: Denoiser, batch: int = 2, height: int = 8, width: int = 8) -> torch.Tensor:
    latents, timestep, context = inputs(batch, height, width)
    return denoiser(latents, timestep, {"tokens": context.to(denoiser.borrow.dtype)})


@pytest.mark.parametrize("size", [(8, 8), (9, 13)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.every(2)
def test_every_way_of_lending_gives_the_same_bits(
    unet: Component, copies: Copies, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    drawn = []
    for plan, copied in [*WAYS, *((replace(PARTIAL, resident_bytes=some), False) for some in (1, 50_000, 900_000))]:
        with lending(unet, plan, dtype, copies[dtype] if copied else None) as denoiser:
            drawn += [denoised(denoiser, 2, *size), denoised(denoiser, 2, *size)]
    assert all(torch.equal(one, drawn[0]) for one in drawn)


def test_the_output_is_diffusers_own_in_fp32_on_the_cpu(unet: Component, tiny: Path) -> None:
    latents, timestep, context = inputs(2, 9, 13)
    plain = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = plain(latents, timestep, context)[0]
    for dtype, close in zip(DTYPES, (1e-5, 0.1), strict=True):
        with lending(unet, dtype=dtype) as denoiser:
            output = denoised(denoiser, 2, 9, 13)
        assert output.dtype == torch.float32 and output.is_contiguous()
        torch.testing.assert_close(output, expected, atol=close, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
@pytest.mark.every(4)
def test_a_batch_has_the_bits_of_its_samples(unet: Component, dtype: torch.dtype, threads: int) -> None:
    """So guidance does, batched or one pass after another."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with lending(unet, dtype=dtype) as denoiser:
            for size in ((9, 13), (8, 8), (16, 17))[: 1 if threads > 1 else 3]:
                latents, timestep, context = inputs(2, *size)
                together = denoiser(latents, timestep, {"tokens": context.to(dtype)})
                pairs = zip(latents, context.to(dtype), strict=True)
                alone = [denoiser(one[None], timestep, {"tokens": its[None]}) for one, its in pairs]
                assert torch.equal(together, torch.cat(alone)), size
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(16, 16), (9, 13)], ids=str)
def test_each_layer_s_weights_are_laid_out_for_the_map_that_it_sees(
    tiny: Path, unet: Component, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(support, "cpu_packs_for", lambda height, width, dtype: (1, height, width))
    request = replace(ASTRONAUT, height=8 * size[0], width=8 * size[1])
    rows, saw = tables(tiny, request)["denoise"], dict[str, tuple[int, ...]]()
    with lending(unet, table=rows) as denoiser:
        module = denoiser.unet
        packings = packings_of(module, rows, CPU, torch.float32)
        layers = {id(layer): name for name, (layer, _, _) in packings.items() if isinstance(layer, nn.Conv2d)}
        assert len(layers) > 20 or not packings

        def look(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            saw[layers[id(layer)]] = (1, *args[0].shape[2:])

        hooks = [
            module.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(look) for name in layers.values()
        ]
        denoised(denoiser, 1, *size)
        for hook in hooks:
            hook.remove()
    # those that add a residual or a shift are called past their hooks
    assert len(saw) > len(layers) / 3 or not packings
    assert saw == {name: packings[name][2] for name in saw}


# Bytes read


@pytest.mark.parametrize("copied", [False, True][: 1 + can_map()])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_streaming_reads_is_counted_to_the_byte(
    tiny: Path, unet: Component, copies: Copies, plan: Plan, copied: bool
) -> None:
    copy, rows = copies[NARROW] if copied else None, tables(tiny, plan=plan, dtype=DTYPE_NAMES[NARROW])["denoise"]
    going = [row.name for row in rows if row.use == "matrix" and not row.stays]
    sizes = matrices(unet)
    if copy:
        streamed = sum(size for name in going for _, size in copy.places(name))
    else:
        streamed = sum(2 * sizes[name] for name in going)  # of FP16
    with lending(unet, plan, NARROW, copy, table=rows) as denoiser:
        assert denoiser.lent.bytes_read == 0
        for times in (1, 2, 3):
            denoised(denoiser, 1)
            assert denoiser.lent.bytes_read == times * streamed
    assert (streamed == 0) == (plan is RESIDENT) and (len(going) == len(sizes)) == (plan is STREAMED)


@maps
def test_a_second_sample_goes_through_the_transformers_again(unet: Component, copies: Copies) -> None:
    copy = copies[NARROW]
    assert copy is not None
    sizes = {name: sum(size for _, size in copy.places(name)) for name in matrices(unet)}
    transformers = sum(size for name, size in sizes.items() if ".attentions." in name)
    with lending(unet, STREAMED, NARROW, copy) as denoiser:
        denoised(denoiser, 2)
        assert denoiser.lent.bytes_read == sum(sizes.values()) + transformers


def test_what_is_packed_for_the_moment_is_remembered_in_no_more_than_the_largest(unet: Component) -> None:
    remembered = set()
    with lending(unet, STREAMED) as denoiser:
        largest = max(matrices(unet).values())
        assert denoiser.lent._buffer.numel() == largest
        for layer in denoiser.unet.modules():
            layer.register_forward_hook(lambda *_: remembered.add(denoiser.lent._remembered()))
        denoised(denoiser)
    assert max(remembered) <= largest
    assert max(remembered) > 0 or not packed_layers(denoiser.unet)


# The end of a loan


@ways
@pytest.mark.parametrize("fail", [False, True])
def test_nothing_is_left_when_the_loan_ends(
    unet: Component, copies: Copies, plan: Plan, copied: bool, fail: bool
) -> None:
    def boom(*_: object) -> None:
        raise KeyError("within a transformer")

    threads, weights, copy = threading.active_count(), [], copies[NARROW] if copied else None
    with (
        pytest.raises(KeyError) if fail else nullcontext(),
        lending(unet, plan, NARROW, copy) as denoiser,
    ):
        layers = dict(denoiser.unet.named_modules())
        for forward in packed_layers(denoiser.unet).values():
            weights += [weakref.ref(weight) for weight in forward._weights()]
            del forward
        with layers["mid_block.attentions.0.proj_in"].register_forward_pre_hook(boom) if fail else nullcontext():
            denoised(denoiser)
    for name, layer in layers.items():
        frugally = frugal._forward_of(layer) is not None or (isinstance(layer, FeedForward) and name.endswith(".ff"))
        assert ("forward" in vars(layer)) == frugally, name
        assert not layer._forward_hooks and not layer._forward_pre_hooks
    assert packed_layers(denoiser.unet) == {}
    assert all(parameter.is_meta for parameter in denoiser.unet.parameters())
    assert denoiser.lent._buffer.numel() == 0 and not denoiser.lent._recent
    assert threading.active_count() == threads, "the thread that reads ahead has ended"
    gc.collect()
    assert [ref for ref in weights if ref() is not None] == [], "packed weights outlive the loan"
    assert len(weights) >= len(matrices(unet)) or not can_map()


@torch.no_grad()
def test_every_component_is_on_meta_again_after_its_loan(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, built = open_model("m", tiny), list[nn.Module]()
    words_by, maps_by, steps_by = (
        borrowing(part, RESIDENT) for part in map(model.parts.get, ("text_encoder", "vae", "unet"))
    )
    for kind in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel):

        def eval_and_note(self: nn.Module, evaluate: Any = kind.eval) -> nn.Module:
            built.append(self)
            return cast(nn.Module, evaluate(self))

        monkeypatch.setattr(kind, "eval", eval_and_note)
    with borrow_text_encoder(model.parts["text_encoder"], words_by) as words:
        context = words(torch.ones(1, 1, 77, dtype=torch.long))
    with borrow_encoder(model.parts["vae"], maps_by) as encode:
        encode(torch.zeros(1, 3, 64, 64))
    with borrow_denoiser(model.parts["unet"], steps_by) as denoiser:
        denoiser(torch.zeros(1, 4, 24, 24), torch.tensor(1), {"tokens": context})
        assert denoiser.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor is not None
    with borrow_decoder(model.parts["vae"], maps_by) as decode:
        decode(torch.zeros(1, 4, 24, 24))
    assert len(built) == 4
    for module in built:
        assert all(parameter.is_meta for parameter in module.parameters())
        processors = getattr(module, "attn_processors", {}).values()
        assert sum(processor._scratch.numel() for processor in processors) == 0, "the scratch outlives the loan"


# Giving back, and preparing


def test_the_heap_is_given_back_as_often_as_the_plan_says(unet: Component) -> None:
    counts: Counter[GiveBack] = Counter()
    ways_of_giving: tuple[GiveBack, ...] = ("stage", "block", "piece")
    for give_back in ways_of_giving:

        class Noting(CpuDevice):
            def between_blocks(self, of: GiveBack = give_back) -> None:
                counts[of] += 1

        with lending(unet, replace(RESIDENT, give_back=give_back), device=Noting()) as denoiser:
            counts[give_back] = 0
            denoised(denoiser)
            told = counts[give_back]
        counts[give_back] = told
    assert counts["stage"] == 0 and counts["block"] == 5 and counts["piece"] > 2 * counts["block"]


@maps
def test_a_copy_has_every_packed_weight_and_no_other(unet: Component, copies: Copies) -> None:
    copy = copies[torch.float32]
    assert copy is not None
    with lending(unet, STREAMED, copy=copy) as denoiser:
        layers = set(packed_layers(denoiser.unet))
    assert set(copy._entries) == set(matrices(unet))
    assert {name.removesuffix(".weight").removesuffix(".net.0.proj") for name in copy._entries} == {
        name.removesuffix(".net.0") for name in layers
    }
