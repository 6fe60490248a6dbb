"""Z-Image, as the host knows it (https://arxiv.org/abs/2511.22699): Qwen3 reads the prompt, one stream of words and
picture goes through a transformer, FLUX.1's autoencoder makes the picture."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from sdcli.domain import Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.colours import FLUX, colours_for
from sdcli.families.contract import Defaults, FlowTimes, Geometry, Part, Stage
from sdcli.families.qwen3.parts import TEXT_ENCODER, TOKENIZER, TOKENIZER_BYTES, TOKENS_LIMIT
from sdcli.families.qwen3.vocabulary import written_tokenizer
from sdcli.families.tiny.parts import TINY
from sdcli.families.tiny.parts import require_fit as require_fit_of_tiny
from sdcli.families.zimage.parts import PARTS
from sdcli.families.zimage.schema import PATCH, Autoencoder, Transformer

NATIVE_SIDE = 1024
"""Pixels along a side of the pictures that it was made for."""

CHUNK = 32
"""Tokens: words and picture are each filled up to a multiple of so many."""

FRAME_BYTES = len("user\n" + "\nassistant\n") + 3
"""Of what is around a prompt, with its three marks: it has no more tokens."""

TURBO, BASE = Defaults(steps=8, guidance=1.0), Defaults(steps=30, guidance=4.0)
"""Of the model that was distilled to go without guidance, and of the one that was not."""

TURBO_SHIFT, BASE_SHIFT = 3.0, 6.0
"""How far the distilled one's steps are shifted towards noise at most, and the other's."""


class ZImage:
    """Z-Image-Turbo and Z-Image."""

    name = "zimage"
    network = "sdcli.families.zimage.network"
    pipelines: tuple[str, ...] = ("ZImagePipeline", "ZImageImg2ImgPipeline")
    index_extras: Mapping[str, object] = {}
    parts: tuple[Part, ...] = (TOKENIZER, TEXT_ENCODER, *PARTS)
    extras: tuple[Part, ...] = (replace(TINY, pulled="madebyollin/taef1"),)
    defaults = TURBO

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        """Words, the init image if there is one, the steps, and the pictures."""
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
        return (words, steps, pictures) if request.strength is None else (words, init, steps, pictures)

    def geometry(self, model: Model) -> Geometry:
        """The denoiser takes patches of the autoencoder's latents."""
        vae = _vae(model)
        factor = 2 ** (len(vae.block_out_channels) - 1)
        return Geometry(
            latent_channels=vae.latent_channels,
            latent_factor=factor,
            patch=PATCH,
            native_size=(NATIVE_SIDE, NATIVE_SIDE),
            prompt_tokens=CHUNK,
            colours=colours_for(vae.latent_channels, FLUX),
            weighs_words=False,
            flow_times=partial(_flow_times, model.parts["scheduler"].config, factor * PATCH),
            defaults=TURBO if _is_turbo(model) else BASE,
        )

    def chunks(self, model: Model, request: Request) -> int:
        """A token is at least one byte, and no prompt has more tokens than TOKENS_LIMIT."""
        texts = (request.prompt, request.negative) if request.guided else (request.prompt,)
        longest = max(len(unicodedata.normalize("NFC", text).encode("utf-8", "replace")) for text in texts)
        return -(-min(TOKENS_LIMIT, longest + FRAME_BYTES) // CHUNK)

    def require_fit(self, ref: str, model: Model) -> None:
        """Raise SdcliError unless latents and words are of one size everywhere."""
        transformer, vae, text = _transformer(model), _vae(model), model.parts["text_encoder"].settings
        if transformer.in_channels != vae.latent_channels:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser of {transformer.in_channels} channels for latents of"
                f" {vae.latent_channels}: they are of two models; fetch it again"
            )
        require_fit_of_tiny(ref, model, vae.latent_channels, self.geometry(model).latent_factor)
        if transformer.cap_feat_dim != text.hidden_size:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser that takes {transformer.cap_feat_dim} numbers a word and"
                f" a text encoder that gives {text.hidden_size}: they are of two models; fetch it again"
            )

    def label(self, model: Model) -> str:
        """`z-image-turbo` and `z-image` for the two that are known, else `zimage`: the same parts in other sizes."""
        transformer = _transformer(model)
        known = (transformer.dim, transformer.n_layers) == (3840, 30)
        return ("z-image-turbo" if _is_turbo(model) else "z-image") if known else "zimage"

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        """A vocabulary of the size that the text encoder has."""
        return {"tokenizer/tokenizer.json": written_tokenizer(config["text_encoder"]["vocab_size"])}


def _is_turbo(model: Model) -> bool:
    """Nothing tells but how far the scheduler shifts its steps."""
    shift = model.parts["scheduler"].config.get("shift", 1.0)
    return bool(shift <= TURBO_SHIFT)


def _flow_times(scheduler: Mapping[str, Any], factor: int, request: Request) -> FlowTimes:
    """As diffusers' ZImagePipeline spaces them: from 1 down in equal steps; shifts that go by the picture's size are
    for schedulers that ask for them."""
    tokens, steps = (request.height // factor) * (request.width // factor), request.steps
    least, most = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - least) / (most - least) if most != least else low
    return FlowTimes(_spaced(steps), mu)


def _spaced(steps: int) -> tuple[float, ...]:
    """From 1 down to 1 / steps."""
    return tuple(1.0 - step / steps for step in range(steps))


def _transformer(model: Model) -> Transformer:
    settings: Transformer = model.parts["transformer"].settings
    return settings


def _vae(model: Model) -> Autoencoder:
    settings: Autoencoder = model.parts["vae"].settings
    return settings
