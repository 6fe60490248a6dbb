"""FLUX.2 [klein], as the worker runs it: a stage a function (families/contract.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import nn

from sdcli.domain import Component, Model, Request
from sdcli.families.flux2.autoencoder import borrow_decoder, borrow_encoder, build_autoencoder
from sdcli.families.flux2.denoiser import Denoiser, borrow_denoiser, build_transformer, places_of
from sdcli.families.flux2.family import WORD_LAYERS
from sdcli.families.flux2.parts import PATCH
from sdcli.families.qwen3.parts import TOKENS_LIMIT
from sdcli.families.qwen3.text_encoder import borrow_text_encoder, build_text_encoder
from sdcli.families.qwen3.tokens import tokens_of
from sdcli.families.tiny.autoencoder import borrow_tiny
from sdcli.families.tiny.parts import TINY
from sdcli.weights.borrow import Borrow

REFERENCES_APART = 10
"""In the first number of a token's place: the picture that is drawn is at 0, the first one to go by at 10."""

State = dict[str, dict[str, torch.Tensor]]

BUILDERS: dict[str, Callable[[Component], nn.Module]] = {
    "text_encoder": build_text_encoder,
    "transformer": build_transformer,
    "vae": build_autoencoder,
}


def build(component: Component) -> nn.Module:
    """The part's module on the meta device."""
    return BUILDERS[component.name](component)


@contextmanager
def encode_prompt(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Words to `tokens`, (2, tokens, channels) with the negative prompt first, or (1, …) without guidance."""
    tokens = tokens_of(model, request, borrow, TOKENS_LIMIT, thinking=False, padded=True)
    with borrow_text_encoder(model.parts["text_encoder"], WORD_LAYERS, borrow) as encode:
        # layers side by side: (layers, tokens, channels) to (tokens, layers x channels)
        yield lambda _: {
            "conditioning": {"tokens": torch.stack([each.transpose(0, 1).flatten(1) for each in encode(tokens)])}
        }


@contextmanager
def encode_references(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Pictures to go by to `references`, (…, tokens, channels), and the `places` of these tokens, for every prompt."""
    with borrow_encoder(model.parts["vae"], borrow) as encode:

        def run(state: State) -> State:
            tokens, places = [], []
            for index, levels in state["references"].items():
                latents = encode(levels.float().div_(127.5).sub_(1))
                _, _, height, width = latents.shape
                tokens.append(latents[0].flatten(1).T)
                places.append(places_of(height, width, REFERENCES_APART * (1 + int(index))))
            conditioning = state["conditioning"]
            each = {"references": torch.cat(tokens), "places": torch.cat(places).to(tokens[0].device)}
            rows = len(conditioning["tokens"])
            return {"conditioning": conditioning | {n: one.expand(rows, -1, -1) for n, one in each.items()}}

        yield run


@contextmanager
def encode_image(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Pixels to `latents`."""
    with borrow_encoder(model.parts["vae"], borrow) as encode:
        yield lambda state: {"init": {"latents": encode(state["pixels"]["rgb"])}}


def start(model: Model, init: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Latents of the init image."""
    return init["latents"]


def denoise(model: Model, request: Request, borrow: Borrow) -> AbstractContextManager[Denoiser]:
    """The transformer: (latents, timestep, conditioning, guidance) to its output."""
    return borrow_denoiser(model.parts["transformer"], borrow)


@contextmanager
def decode(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Latents of one picture to its pixels, (1, 3, h, w) in -1…1; a tiny decoder takes them as the denoiser does."""
    tiny = model.parts.get(TINY.name)
    if tiny is None:
        with borrow_decoder(model.parts["vae"], borrow) as run:
            yield run
    else:
        with borrow_tiny(tiny, borrow) as run:
            yield lambda latents: run(F.pixel_shuffle(latents, PATCH))


def try_out() -> None:
    """Use once what most depends on the rest of its library: what is missed should be missed now, not in a stage."""
    sizes: dict[str, Any] = dict.fromkeys(("in_channels", "joint_attention_dim", "timestep_guidance_channels"), 8)
    sizes |= dict.fromkeys(("num_layers", "num_single_layers", "num_attention_heads"), 1)
    with torch.inference_mode(), torch.device("meta"):
        Flux2Transformer2DModel(**sizes, attention_head_dim=8, axes_dims_rope=(2, 2, 2, 2), guidance_embeds=False)
