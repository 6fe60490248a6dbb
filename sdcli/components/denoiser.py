"""The denoiser, borrowed: a UNet with its weights lent, its attention bounded and its forward frugal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from sdcli.components.attention import BoundedAttention
from sdcli.components.empty import without_memory
from sdcli.components.frugal import make_frugal
from sdcli.components.weights import Lent, lend_weights
from sdcli.devices.base import Device
from sdcli.domain import Plan
from sdcli.models.folder import Component


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A borrowed UNet and the device and type it computes in."""

    unet: UNet2DConditionModel
    lent: Lent
    device: Device
    dtype: torch.dtype

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The model's output for (batch, channels, h, w) latents on the CPU in FP32: the same shape, place and type."""
        sample = latents.to(self.device.torch_device, self.dtype).contiguous(memory_format=self.device.memory_format)
        output = self.unet(sample, timestep, encoder_hidden_states=context, return_dict=False)[0]
        return output.to("cpu", torch.float32).contiguous()


@contextmanager
def borrow_denoiser(component: Component, plan: Plan, device: Device, dtype: torch.dtype) -> Iterator[Denoiser]:
    """Load the denoiser as the plan says, lend it, free it."""
    with without_memory():
        unet = UNet2DConditionModel(**component.config).eval()
    attention = BoundedAttention(plan.attention_scratch_bytes, fused=device.fused_attention(dtype))
    unet.set_attn_processor(attention)
    make_frugal(unet)
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        pieces = (*block.resnets, *getattr(block, "attentions", ())) if plan.tight else (block,)
        for piece in pieces:
            piece.register_forward_hook(lambda *_: device.between_blocks())
    with lend_weights(unet, component, device, dtype, resident_bytes=plan.resident_bytes) as lent, device.repeating():
        try:
            yield Denoiser(unet, lent, device, dtype)
        finally:
            attention.free()
