"""The stages before the denoiser: words to context, and the init image to latents."""

from __future__ import annotations

from collections.abc import Generator

import torch

from sdcli.devices.base import Device
from sdcli.domain import Plan, Request
from sdcli.engine.stage import Stage, is_finite, not_finite
from sdcli.families.sd.autoencoder import borrow_encoder
from sdcli.families.sd.text_encoder import borrow_text_encoder, tokenize
from sdcli.messages import Message, Notice
from sdcli.models.folder import Model


def encode_prompt(
    request: Request, model: Model, device: Device, dtype: torch.dtype
) -> Generator[Message, None, torch.Tensor]:
    """Yields events; returns the context: (2, tokens, channels), negative prompt first, or (1, …) without guidance."""
    stage = Stage("encode_prompt", device)
    yield stage.began()
    prompts = [request.negative, request.prompt] if request.guided else [request.prompt]
    tokens = tokenize(model.tokenizer, model.prompt_tokens, prompts)
    for kind, dropped in zip(["negative prompt", "prompt"][-len(prompts) :], tokens.dropped, strict=True):
        if dropped:
            yield Notice(f"the {kind} is too long: its last {dropped} tokens are left out")
    with borrow_text_encoder(model.text_encoder, device, dtype) as encode:
        yield stage.loaded()
        context = encode(tokens.ids)
    if not is_finite(context):
        raise not_finite(stage.name, dtype, "the text encoder's weights are damaged")
    yield stage.ended()
    return context


def encode_image(
    pixels: torch.Tensor, model: Model, plan: Plan, device: Device, dtype: torch.dtype
) -> Generator[Message, None, tuple[torch.Tensor, torch.Tensor]]:
    """Yields events; returns mean and deviation of the latents of (1, 3, H, W) pixels in -1…1, unscaled, FP32."""
    stage = Stage("encode_image", device)
    yield stage.began()
    with borrow_encoder(model.vae, device, dtype, keep_maps=plan.vae_tile is None) as encode:
        yield stage.loaded()
        mean, deviation = encode(pixels)
    if not (is_finite(mean) and is_finite(deviation)):
        raise not_finite(stage.name, dtype, "the autoencoder's weights are damaged")
    yield stage.ended()
    return mean, deviation
