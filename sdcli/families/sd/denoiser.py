"""The denoiser, borrowed: a UNet with its weights lent, its attention bounded and its forward frugal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.frugal import make_frugal
from sdcli.domain import Component
from sdcli.families.sd.unet import embedded_guidance, is_plain, predict
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build
from sdcli.weights.lent import Lent


@dataclass(frozen=True, slots=True)
class Denoiser:
    """A borrowed UNet. `lent` counts what it reads."""

    unet: UNet2DConditionModel
    lent: Lent
    borrow: Borrow

    def __call__(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        conditioning: Mapping[str, torch.Tensor],
        guidance: float = 1.0,
    ) -> torch.Tensor:
        """The model's output for (batch, channels, h, w) latents on the CPU in FP32: the same shape, place and type.

        What the conditioning has `beside` them, (batch, more channels, h, w), goes in with them.

        `guidance` is for models that take it as an input; to others it says nothing.
        """
        device, beside = self.borrow.device, conditioning.get("beside")
        if beside is not None:  # of a model made for inpainting: a mask and what is outside it
            latents = torch.cat([latents, beside], dim=1)
        sample = latents.to(device.torch_device, self.borrow.dtype).contiguous(memory_format=device.memory_format)
        size, context = self.unet.config.time_cond_proj_dim, conditioning["tokens"]
        condition = None if size is None else embedded_guidance(guidance, size).to(sample)
        added = self.added(conditioning)
        if is_plain(self.unet):
            output = predict(self.unet, sample, timestep, context, self.borrow.between, condition, added)
        else:
            given: dict[str, Any] = {"encoder_hidden_states": context, "timestep_cond": condition}
            given["added_cond_kwargs"] = added
            output = self.unet(sample, timestep, **given, return_dict=False)[0]
        return output.to("cpu", torch.float32).contiguous()

    def added(self, conditioning: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the UNet takes with the time besides."""
        return {}


def build_unet(component: Component) -> UNet2DConditionModel:
    """On the meta device."""
    return build(component, lambda: UNet2DConditionModel(**component.config))


@contextmanager
def borrow_denoiser(component: Component, borrow: Borrow) -> Iterator[Denoiser]:
    """Load the denoiser as the plan says, lend it, free it."""
    with borrow_unet(component, borrow) as (unet, lent):
        yield Denoiser(unet, lent, borrow)


@contextmanager
def borrow_unet(component: Component, borrow: Borrow) -> Iterator[tuple[UNet2DConditionModel, Lent]]:
    """Lend a UNet whose attention is bounded and whose forward is frugal, and what counts its reading."""
    unet, device = build_unet(component), borrow.device
    attention = BoundedAttention(borrow.scratch_bytes, device.fused_attention(borrow.dtype), device.name == "cpu")
    unet.set_attn_processor(attention)
    make_frugal(unet, by_sample=device.name == "cpu")
    with borrow.weights(unet, component) as lent, device.repeating():
        try:
            yield unet, lent
        finally:
            attention.free()
