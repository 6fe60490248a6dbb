"""FLUX.2 [klein], as the host knows it: Qwen3 reads the prompt, a transformer goes from noise to the picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdcli.domain import Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.colours import FLUX2, colours_for
from sdcli.families.contract import Defaults, FlowTimes, Geometry, Part, Stage
from sdcli.families.flux2.parts import PARTS, PATCH
from sdcli.families.flux2.schema import Autoencoder, Transformer
from sdcli.families.qwen3.parts import TEXT_ENCODER, TOKENIZER, TOKENIZER_BYTES, TOKENS_LIMIT
from sdcli.families.qwen3.vocabulary import written_tokenizer
from sdcli.families.tiny.parts import TINY
from sdcli.families.tiny.parts import require_fit as require_fit_of_tiny

WORD_LAYERS = (9, 18, 27)
"""Layers of the text encoder whose states the denoiser takes, side by side."""

REFERENCES = 10
"""Pictures to go by, at most: each adds as many tokens as the picture that is drawn."""

NATIVE_SIDE = 1024
"""Pixels along a side of the pictures that it was made for."""

DISTILLED, BASE = Defaults(steps=4, guidance=1.0), Defaults(steps=50, guidance=4.0)
"""Of the models that were distilled to few steps without guidance, and of those that these were made of."""


class Flux2:
    """FLUX.2 [klein], 4B and 9B, distilled to four steps or base."""

    name = "flux2"
    network = "sdcli.families.flux2.network"
    pipelines: tuple[str, ...] = ("Flux2KleinPipeline",)
    index_extras: Mapping[str, object] = {"is_distilled": True}
    parts: tuple[Part, ...] = (TOKENIZER, TEXT_ENCODER, *PARTS)
    extras: tuple[Part, ...] = (replace(TINY, pulled="madebyollin/taef2", stem="taef2"),)
    defaults = DISTILLED

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        """Words, pictures to go by and the init image if there are any, the steps, and the pictures."""
        words = Stage(
            "encode_prompt",
            "once",
            ("text_encoder",),
            "the text encoder",
            reads=("tokenizer",),
            extra_bytes=TOKENIZER_BYTES,
            kept=True,
        )
        init = Stage("encode_image", "once", ("vae",), "the autoencoder", ways=AUTOENCODER_WAYS)
        steps = Stage("denoise", "steps", ("transformer",), "the denoiser")
        pictures = Stage("decode", "pictures", ("vae",), "the autoencoder", ways=AUTOENCODER_WAYS)
        if TINY.name in model.parts:
            pictures = Stage("decode", "pictures", (TINY.name,), "the tiny autoencoder")
        others = Stage("encode_references", "once", ("vae",), "the autoencoder", ways=AUTOENCODER_WAYS)
        given = ((others,) if request.references else ()) + ((init,) if request.strength is not None else ())
        return (words, *given, steps, pictures)

    def geometry(self, model: Model) -> Geometry:
        """A latent is a patch of the autoencoder's, with all their channels."""
        vae = _vae(model)
        factor = PATCH * 2 ** (len(vae.block_out_channels) - 1)
        return Geometry(
            latent_channels=vae.latent_channels * PATCH**2,
            latent_factor=factor,
            native_size=(NATIVE_SIDE, NATIVE_SIDE),
            prompt_tokens=TOKENS_LIMIT,
            references=REFERENCES,
            colours=colours_for(vae.latent_channels * PATCH**2, FLUX2),
            weighs_words=False,
            defaults=BASE if is_base(model.ref) else DISTILLED,
            flow_times=lambda request: _flow_times(request, factor),
        )

    def chunks(self, model: Model, request: Request) -> int:
        """Every prompt is padded to the same length."""
        return 1

    def require_fit(self, ref: str, model: Model) -> None:
        """Raise SdcliError unless latents and words are of one size everywhere."""
        transformer, vae, text = _transformer(model), _vae(model), model.parts["text_encoder"].settings
        latents = vae.latent_channels * PATCH**2
        if transformer.in_channels != latents:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser of {transformer.in_channels} channels for latents of {latents}:"
                " they are of two models; fetch it again"
            )
        require_fit_of_tiny(ref, model, vae.latent_channels, self.geometry(model).latent_factor // PATCH)
        words = text.hidden_size * len(WORD_LAYERS)
        if transformer.joint_attention_dim != words:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser that takes {transformer.joint_attention_dim} numbers a word and"
                f" a text encoder that gives {words}: they are of two models; fetch it again"
            )

    def label(self, model: Model) -> str:
        """`klein` for the two that are known, else `flux2`: the same parts in other sizes."""
        transformer = _transformer(model)
        sizes = transformer.num_layers, transformer.num_single_layers, transformer.num_attention_heads
        return {(5, 20, 24): "klein-4b", (8, 24, 32): "klein-9b"}.get(sizes, "flux2")

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        """A vocabulary of the text encoder's."""
        return {"tokenizer/tokenizer.json": written_tokenizer(config["text_encoder"]["vocab_size"])}


def is_base(ref: str) -> bool:
    """Whether the model is called a base one, as in FLUX.2-klein-base-4B: nothing else in its parts tells."""
    return re.search(r"(?<![a-z])base(?![a-z])", ref, re.IGNORECASE) is not None


def _flow_times(request: Request, factor: int) -> FlowTimes:
    """As diffusers' Flux2KleinPipeline spaces them: from 1 down in equal steps, and shifted by the picture's size."""
    tokens = (request.height // factor) * (request.width // factor)
    steps = request.steps
    return FlowTimes(tuple(1 - step / steps for step in range(steps)), empirical_mu(tokens, steps))


def empirical_mu(tokens: int, steps: int) -> float:
    """The shift for so many tokens of a picture and so many steps: lines through what its makers found best, at 10 and
    at 200 steps (compute_empirical_mu)."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190
    return slope * steps + at_200 - 200 * slope


def _transformer(model: Model) -> Transformer:
    settings: Transformer = model.parts["transformer"].settings
    return settings


def _vae(model: Model) -> Autoencoder:
    settings: Autoencoder = model.parts["vae"].settings
    return settings
