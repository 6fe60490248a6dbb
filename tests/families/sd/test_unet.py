"""The way through the UNet is diffusers' own, and maps go when they were last used."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.frugal import make_frugal
from sdcli.devices.cpu import CpuDevice
from sdcli.families.sd.denoiser import Denoiser
from sdcli.families.sd.unet import is_plain, predict
from sdcli.weights.borrow import Borrow
from sdcli.weights.lent import Lent
from tests.networks import built, inputs

LEVELS: dict[str, Any] = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "linear projections": {"use_linear_projection": True},
    "three levels": LEVELS,
    "two blocks a transformer": {"transformer_layers_per_block": 2},
    "attention to the prompt only": {"only_cross_attention": True},
    "rescaled": {"resnet_out_scale_factor": 1.25},
    "a plain middle": {"mid_block_type": "UNetMidBlock2D"},
    "no middle": {"mid_block_type": None},
    "frequencies the other way round": {"flip_sin_to_cos": False, "freq_shift": 1},
}


def ready(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    unet.set_attn_processor(BoundedAttention(2**20))
    make_frugal(unet)
    return unet


OTHERS: list[dict[str, Any]] = [
    {"resnet_time_scale_shift": "scale_shift"},
    {"act_fn": "gelu"},
    {"center_input_sample": True},
    {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
]


@pytest.mark.parametrize("options", OTHERS, ids=lambda options: next(iter(options)))
@torch.no_grad()
def test_a_unet_of_other_parts_goes_diffusers_own_way(options: dict[str, Any]) -> None:
    given = inputs(2)
    plain, unet = built(**options), ready(built(**options))
    assert not is_plain(unet) and is_plain(ready(built()))
    device, (latents, timestep, context) = CpuDevice(), given
    denoiser = Denoiser(unet, Lent(device, torch.float32), Borrow(device, torch.float32))
    output = denoiser(latents, timestep, {"tokens": context})
    torch.testing.assert_close(output, plain(*given)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def predicted(unet: UNet2DConditionModel, *given: torch.Tensor) -> torch.Tensor:
    latents, timestep, context = given
    latents = latents.contiguous(memory_format=torch.channels_last)
    return predict(unet, latents, timestep, context, lambda _: None)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (10, 11), (5, 8)], ids=str)
@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
@pytest.mark.every(3)
def test_the_prediction_is_diffusers_own(kind: str, size: tuple[int, int], batch: int) -> None:
    given = inputs(batch, *size)
    expected = built(**MODELS[kind])(*given)[0]
    output = predicted(ready(built(**MODELS[kind])), *given)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


def test_neither_latents_nor_context_are_written_to() -> None:
    given = inputs(2)
    before = [tensor.clone() for tensor in given]
    unet = ready(built())
    first = predicted(unet, *given)
    assert all(map(torch.equal, given, before)) and torch.equal(predicted(unet, *given), first)


@torch.no_grad()
def test_pieces_and_blocks_are_told_of_in_order() -> None:
    latents, timestep, context = inputs(1)
    told: list[str] = []
    predict(ready(built()), latents, timestep, context, told.append)
    piece, block = ["piece"], ["block"]  # one level with transformers and one without, each way
    assert told == piece * 2 + block + piece + block + piece + block + piece * 2 + block + piece * 4 + block


class Alive:
    """Bytes of the maps that residual blocks, transformers and changes of size gave and that still exist."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self._maps: dict[int, tuple[Any, int]] = {}
        self.at_ups: list[int] = []
        ups = [resnet for block in unet.up_blocks for resnet in block.resnets]
        for resnet in ups:
            resnet.register_forward_pre_hook(lambda *_: self.at_ups.append(self.bytes()))
        for layer in [
            layer for level in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for layer in parts(level)
        ]:
            layer.register_forward_hook(lambda _, __, output: self.note(output))

    def note(self, output: Any) -> None:
        one = output if isinstance(output, torch.Tensor) else output[0]
        storage = one.untyped_storage()
        self._maps[storage.data_ptr()] = weakref.ref(one), storage.nbytes()

    def bytes(self) -> int:
        return sum(nbytes for ref, nbytes in self._maps.values() if ref() is not None)


def parts(level: Any) -> list[nn.Module]:
    lists = (getattr(level, name, None) for name in ("resnets", "attentions", "downsamplers", "upsamplers"))
    return [layer for some in lists if some is not None for layer in some]


@torch.no_grad()
def test_maps_go_when_they_were_last_used() -> None:
    given = inputs(1, 16, 16)
    plain, thrifty = built(**LEVELS), ready(built(**LEVELS))
    theirs, ours = Alive(plain), Alive(thrifty)
    plain(*given, return_dict=False)
    predicted(thrifty, *given)
    assert len(ours.at_ups) == len(theirs.at_ups) == 9
    assert all(map(int.__le__, ours.at_ups, theirs.at_ups)) and sum(ours.at_ups) < sum(theirs.at_ups) * 0.8
    assert ours.at_ups[-1] == 0, "before the last block there is its input only, which two maps were put into"
