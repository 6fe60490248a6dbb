"""The denoiser, borrowed: a UNet with its weights lent, its attention bounded and its forward frugal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.frugal import make_frugal
from sdcli.devices.base import Device
from sdcli.domain import GiveBack, MapShape, Plan
from sdcli.families.sd.unet import embedded_guidance, is_plain, pieces, predict, what_layers_see
from sdcli.models.folder import Component
from sdcli.weights.empty import build
from sdcli.weights.lend import lend_weights, packer
from sdcli.weights.lent import Lent
from sdcli.weights.packed import SOME_MAP, can_map
from sdcli.weights.prepared import PreparedCopy, make_copy


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A borrowed UNet and the device and type it computes in."""

    unet: UNet2DConditionModel
    lent: Lent
    device: Device
    dtype: torch.dtype
    give_back: GiveBack

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, guidance: float = 1.0
    ) -> torch.Tensor:
        """The model's output for (batch, channels, h, w) latents on the CPU in FP32: the same shape, place and type.

        `guidance` is for models that take it as an input; to others it says nothing.
        """
        sample = latents.to(self.device.torch_device, self.dtype).contiguous(memory_format=self.device.memory_format)
        size = self.unet.config.time_cond_proj_dim
        condition = None if size is None else embedded_guidance(guidance, size).to(sample)
        if is_plain(self.unet):
            output = predict(self.unet, sample, timestep, context, self._between, condition)
        else:
            given = {"encoder_hidden_states": context, "timestep_cond": condition}
            output = self.unet(sample, timestep, **given, return_dict=False)[0]
        return output.to("cpu", torch.float32).contiguous()

    def _between(self, after: GiveBack) -> None:
        if self.give_back in ("piece", after):
            self.device.between_blocks()


def prepare_denoiser(
    component: Component, device: Device, dtype: torch.dtype, folder: Path, sees: MapShape = SOME_MAP
) -> PreparedCopy | None:
    """Make the prepared copy of the denoiser's weights in `folder`, for such latents; None where none can be used."""
    if not can_map():
        return None
    unet = build(component, lambda: UNet2DConditionModel(**component.config))
    with packer(unet, component, device, dtype, _pieces(unet), what_layers_see(unet, sees)) as (names, pack):
        return make_copy(folder, names, pack) if names else None


def _pieces(unet: UNet2DConditionModel) -> dict[str, int]:
    return pieces(unet) if is_plain(unet) else {}


@contextmanager
def borrow_denoiser(
    component: Component,
    plan: Plan,
    device: Device,
    dtype: torch.dtype,
    prepared: PreparedCopy | None = None,
    sees: MapShape = SOME_MAP,
) -> Iterator[Denoiser]:
    """Load the denoiser as the plan says, for latents of the shape that it `sees`, lend it, free it.

    With a prepared copy, what streams comes from there.
    """
    unet = build(component, lambda: UNet2DConditionModel(**component.config))
    attention = BoundedAttention(plan.attention_scratch_bytes, fused=device.fused_attention(dtype))
    unet.set_attn_processor(attention)
    make_frugal(unet, by_sample=device.name == "cpu")
    with (
        lend_weights(
            unet,
            component,
            device,
            dtype,
            resident_bytes=None if plan.residency == "resident" else plan.resident_bytes,
            packed=True,
            prepared=prepared,
            pieces=_pieces(unet),
            sees=what_layers_see(unet, sees),
        ) as lent,
        device.repeating(),
    ):
        try:
            yield Denoiser(unet, lent, device, dtype, plan.give_back)
        finally:
            attention.free()
