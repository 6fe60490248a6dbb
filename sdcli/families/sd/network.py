"""Stable Diffusion, as the worker runs it (Rombach et al. 2022, https://arxiv.org/abs/2112.10752): a stage a function.

Each borrows what it needs, lends a function that does its work, and frees what it borrowed. The stages' names, and what
they take and give, are in family.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from sdcli.domain import Component, Model, Request
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder, build_autoencoder, to_denoiser
from sdcli.families.sd.denoiser import Denoiser, borrow_denoiser, build_unet
from sdcli.families.sd.family import StableDiffusion, is_told_of_mask, words_from
from sdcli.families.sd.text_encoder import borrow_text_encoder, build_text_encoder, text_config
from sdcli.families.sd.wordings import State, conditionings, tokens_of, weighed
from sdcli.families.tiny.autoencoder import borrow_tiny
from sdcli.families.tiny.parts import TINY
from sdcli.weights.borrow import Borrow

MASKED = 0.5
"""A mask is 0 below, 1 from there on."""

BUILDERS: dict[str, Callable[[Component], nn.Module]] = {
    "text_encoder": build_text_encoder,
    "unet": build_unet,
    "vae": build_autoencoder,
}


def build(component: Component) -> nn.Module:
    """The part's module on the meta device."""
    return BUILDERS[component.name](component)


@contextmanager
def encode_prompt(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Words to `tokens`, (2, tokens, channels) with the negative prompt first, or (1, …) without guidance.

    Words that change from step to step are several of these (engine/denoise.py, `conditioning_at`).
    """
    tokens = tokens_of(("text_encoder", "tokenizer"), StableDiffusion(), model, request, request.guided, borrow)
    text = words_from(model.parts["text_encoder"], request.clip_skip)
    with borrow_text_encoder(text, borrow) as encode:
        yield lambda _: conditionings(
            request, borrow, lambda: ({"tokens": weighed(one, request, borrow, encode)} for one in tokens)
        )


@contextmanager
def encode_image(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Pixels to `mean` and `deviation` of their latents, unscaled; those of what is outside the mask as `surroundings`,
    where the denoiser is told of it: grey without a mask."""
    with borrow_encoder(model.parts["vae"], borrow) as encode:

        def encoded(rgb: torch.Tensor) -> dict[str, torch.Tensor]:
            mean, deviation = encode(rgb)
            return {"mean": mean, "deviation": deviation}

        def run(state: State) -> State:
            given, pixels = State(), state.get("pixels", {})
            if request.strength is not None:
                given["init"] = encoded(pixels["rgb"])
            if is_told_of_mask(model):
                grey = torch.zeros(1, 3, request.height, request.width, device="meta" if borrow.dry else "cpu")
                known = pixels["rgb"] * (pixels["mask"] < MASKED) if request.masked else grey
                given["surroundings"] = encoded(known)
            return given

        yield run


def start(model: Model, init: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Latents of the init image as the denoiser knows them: a sample of those that the encoder gives."""
    mean, deviation = init["mean"], init["deviation"]
    sampled = mean + deviation * torch.randn(mean.shape, generator=generator)
    return to_denoiser(model.parts["vae"], sampled)


def beside(
    model: Model, surroundings: Mapping[str, torch.Tensor], mask: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What the denoiser takes `beside` latents: the mask, and a sample of latents of what is outside it."""
    sampled = surroundings["mean"] + surroundings["deviation"] * noise
    return {"beside": torch.cat([mask, to_denoiser(model.parts["vae"], sampled)], dim=1)}


@contextmanager
def denoise(model: Model, request: Request, borrow: Borrow) -> Iterator[Denoiser]:
    """The UNet: (latents, timestep, conditioning, guidance) to its output."""
    with borrow_denoiser(model.parts["unet"], borrow) as denoiser:
        yield denoiser


@contextmanager
def decode(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Latents of one picture to its pixels, (1, 3, h, w) in -1…1."""
    tiny = model.parts.get(TINY.name)
    loan = borrow_decoder(model.parts["vae"], borrow) if tiny is None else borrow_tiny(tiny, borrow)
    with loan as run:
        yield run


def try_out() -> None:
    """Use once what most depends on the rest of its library: what is missed should be missed now, not in a stage."""
    settings: dict[str, Any] = dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 4
    )
    config = text_config(settings | {"num_hidden_layers": 1, "num_attention_heads": 1})
    with torch.inference_mode():
        CLIPTextModel(config)(torch.zeros(1, 4, dtype=torch.long))
