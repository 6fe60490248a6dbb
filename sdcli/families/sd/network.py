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
from sdcli.families.emphasis import emphasised
from sdcli.families.prompts import turns_of
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder, build_autoencoder
from sdcli.families.sd.denoiser import Denoiser, borrow_denoiser, build_unet
from sdcli.families.sd.family import StableDiffusion, is_told_of_mask, words_from
from sdcli.families.sd.text_encoder import (
    Tokens,
    borrow_text_encoder,
    build_text_encoder,
    own_words,
    text_config,
    tokenize_all,
)
from sdcli.weights.borrow import Borrow

State = dict[str, dict[str, torch.Tensor]]

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
    turns, length = turns_of(request), StableDiffusion().geometry(model).prompt_tokens
    if borrow.dry is not None:
        pairs = [Tokens.dry(1 + request.guided, StableDiffusion().chunks(model, request), length, turns.weighted)]
    else:
        groups = [pair[not request.guided :] for pair in turns.pairs]
        pairs = tokenize_all(model.parts["tokenizer"], length, groups, own_words(model.parts["text_encoder"]))
        kinds = ("negative prompt", "prompt")[not request.guided :]
        for kind, *dropped in zip(kinds, *(tokens.dropped for tokens in pairs), strict=True):
            if any(dropped):
                borrow.notices.append(f"the {kind} is too long: its last {max(dropped)} tokens are left out")
    text = words_from(model.parts["text_encoder"], request.clip_skip)
    with borrow_text_encoder(text, borrow) as encode:

        def run(state: State) -> State:
            given = [{"tokens": _weighed(tokens, request, borrow, encode)} for tokens in pairs]
            if borrow.dry is not None:
                given += [{"tokens": torch.empty_like(given[0]["tokens"])} for _ in turns.pairs[1:]]
            if borrow.dry is not None and len(given) > 1:
                _weighed(pairs[0], request, borrow, encode)  # while the others are there
            encoded: State = {
                f"conditioning {number}" if number else "conditioning": g for number, g in enumerate(given)
            }
            return encoded | ({"turns": {"order": torch.tensor(turns.order)}} if turns.order else {})

        yield run


def _weighed(
    tokens: Tokens, request: Request, borrow: Borrow, encode: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What the encoder says of prompts, by the weights of their words."""
    states = encode(tokens.ids)
    if bool((tokens.weights == 1).all()):
        return states
    if borrow.dry is not None:  # what `emphasised` has at once: some of its operations have no kernel for shapes
        _full = [torch.empty(states.shape, dtype=torch.float32, device=states.device) for _ in range(3)]
        return torch.empty_like(states)
    empty = encode(tokens.empty[None, None])[0] if request.emphasis == "comfy" else None
    parted = states.unflatten(1, tokens.ids.shape[1:])
    return emphasised(parted, tokens.weights, request.emphasis, empty).flatten(1, 2)


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
    scaled: torch.Tensor = sampled * model.parts["vae"].settings.scaling_factor
    return scaled


def beside(
    model: Model, surroundings: Mapping[str, torch.Tensor], mask: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    """What the denoiser takes `beside` latents: the mask, and a sample of latents of what is outside it."""
    sampled = surroundings["mean"] + surroundings["deviation"] * noise
    return {"beside": torch.cat([mask, sampled * model.parts["vae"].settings.scaling_factor], dim=1)}


@contextmanager
def denoise(model: Model, request: Request, borrow: Borrow) -> Iterator[Denoiser]:
    """The UNet: (latents, timestep, conditioning, guidance) to its output."""
    with borrow_denoiser(model.parts["unet"], borrow) as denoiser:
        yield denoiser


@contextmanager
def decode(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Latents of one picture to its pixels, (1, 3, h, w) in -1…1."""
    with borrow_decoder(model.parts["vae"], borrow) as run:
        yield run


def try_out() -> None:
    """Use once what most depends on the rest of its library: what is missed should be missed now, not in a stage."""
    settings: dict[str, Any] = dict.fromkeys(
        ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), 4
    )
    config = text_config(settings | {"num_hidden_layers": 1, "num_attention_heads": 1})
    with torch.inference_mode():
        CLIPTextModel(config)(torch.zeros(1, 4, dtype=torch.long))
