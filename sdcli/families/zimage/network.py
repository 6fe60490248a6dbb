"""Z-Image, as the worker runs it: a stage a function (families/contract.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from sdcli.domain import Component, Model, Request
from sdcli.families.qwen3.text_encoder import borrow_text_encoder, build_text_encoder
from sdcli.families.qwen3.tokens import tokens_of
from sdcli.families.sd.autoencoder import build_autoencoder
from sdcli.families.tiny.autoencoder import borrow_tiny
from sdcli.families.tiny.parts import TINY
from sdcli.families.zimage.autoencoder import borrow_decoder, borrow_encoder
from sdcli.families.zimage.denoiser import Denoiser, borrow_denoiser, build_transformer
from sdcli.families.zimage.family import CHUNK, ZImage
from sdcli.weights.borrow import Borrow

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
    """Words to `tokens`, (2, tokens, channels) with the negative prompt first, or (1, …) without guidance, and their
    `lengths`. They are the states before the text encoder's last layer."""
    tokens = tokens_of(model, request, borrow, CHUNK * ZImage().chunks(model, request), thinking=True)
    text = model.parts["text_encoder"]
    with borrow_text_encoder(text, [text.settings.num_hidden_layers - 1], borrow) as encode:

        def run(state: State) -> State:
            states = [one for (one,) in encode(tokens)]
            lengths = torch.tensor([made.length for made in tokens])
            return {"conditioning": {"tokens": pad_sequence(states, batch_first=True), "lengths": lengths}}

        yield run


@contextmanager
def encode_image(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Pixels to `mean` and `deviation` of their latents."""
    with borrow_encoder(model.parts["vae"], borrow) as encode:

        def run(state: State) -> State:
            mean, deviation = encode(state["pixels"]["rgb"])
            return {"init": {"mean": mean, "deviation": deviation}}

        yield run


def start(model: Model, init: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    """Latents of the init image: a sample of those that the encoder gives."""
    return init["mean"] + init["deviation"] * torch.randn(init["mean"].shape, generator=generator)


def denoise(model: Model, request: Request, borrow: Borrow) -> AbstractContextManager[Denoiser]:
    """The transformer: (latents, timestep, conditioning, guidance) to its output."""
    return borrow_denoiser(model.parts["transformer"], borrow)


def decode(
    model: Model, request: Request, borrow: Borrow
) -> AbstractContextManager[Callable[[torch.Tensor], torch.Tensor]]:
    """Latents of one picture to its pixels, (1, 3, h, w) in -1…1."""
    tiny = model.parts.get(TINY.name)
    return borrow_decoder(model.parts["vae"], borrow) if tiny is None else borrow_tiny(tiny, borrow)


def try_out() -> None:
    """Use once what most depends on the rest of its library: what is missed should be missed now, not in a stage."""
    sizes: dict[str, Any] = dict.fromkeys(("n_layers", "n_refiner_layers", "n_heads", "n_kv_heads"), 1)
    with torch.inference_mode(), torch.device("meta"):
        ZImageTransformer2DModel(**sizes, in_channels=4, dim=24, cap_feat_dim=8, axes_dims=[8, 8, 8])
