"""Stable Diffusion, as the host knows it: text encoder, UNet, autoencoder (https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdcli.domain import Component, Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.colours import DEMO, SD, Colours, colours_for
from sdcli.families.contract import Defaults, Geometry, Part, Stage
from sdcli.families.prompts import turns_of
from sdcli.families.sd.embeddings import vectors_of
from sdcli.families.sd.parts import PARTS
from sdcli.families.sd.schema import OLD_SIDE, Autoencoder, TextEncoder, Tokenizer, UNet
from sdcli.families.sd.vocabulary import written_vocabulary
from sdcli.families.tiny.parts import TINY
from sdcli.families.tiny.parts import require_fit as require_fit_of_tiny
from sdcli.units import MIB

CHUNKS_LIMIT = 8
"""Chunks of a prompt that are used: 600 tokens with CLIP's 75 a chunk. Attention to the prompt grows with each."""

TOKENIZER_BYTES = 12 * MIB
"""CLIP's vocabulary and merges in memory."""

SIDE_LIMIT = 8192
"""Pixels of a picture's longer side."""

ALIGNED_LEVELS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html, of Stable Diffusion 1.5."""


class StableDiffusion:
    """Stable Diffusion 1.x, and whatever has the same parts in other sizes."""

    name = "sd"
    network = "sdcli.families.sd.network"
    pipelines: tuple[str, ...] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    )
    index_extras: Mapping[str, object] = {
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    parts: tuple[Part, ...] = PARTS
    extras: tuple[Part, ...] = (TINY,)
    encoders: Mapping[str, str] = {"text_encoder": "tokenizer"}
    """Parts that words go through, and the tokenizer of each."""
    defaults = Defaults(steps=20, guidance=7.5, aligned_levels=ALIGNED_LEVELS)
    colours: tuple[Colours, ...] = (SD, DEMO)

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        """Words, the init image if there is one, the steps, and the pictures."""
        words = Stage(
            "encode_prompt",
            "once",
            tuple(self.encoders),
            "the text encoder",
            reads=tuple(self.encoders.values()),
            extra_bytes=len(self.encoders) * TOKENIZER_BYTES,
            kept=True,
        )
        init = Stage("encode_image", "once", ("vae",), "the autoencoder", ways=AUTOENCODER_WAYS)
        steps = Stage("denoise", "steps", ("unet",), "the denoiser")
        pictures = Stage("decode", "pictures", ("vae",), "the autoencoder", ways=AUTOENCODER_WAYS)
        if TINY.name in model.parts:
            pictures = Stage("decode", "pictures", (TINY.name,), "the tiny autoencoder")
        needs_init = request.strength is not None or is_told_of_mask(model)
        return (words, init, steps, pictures) if needs_init else (words, steps, pictures)

    def geometry(self, model: Model) -> Geometry:
        """Each level of the autoencoder but one halves the sides: 8 pixels to a latent in Stable Diffusion 1.x.

        A model distilled to take the guidance as an input (Meng et al. 2022), as LCM's were, projects it into the
        timestep's embedding.
        """
        unet, vae = _unet(model), _vae(model)
        factor = 2 ** (len(vae.block_out_channels) - 1)
        side = unet.sample_size or OLD_SIDE
        height, width = (side, side) if isinstance(side, int) else (side[0], side[-1])
        return Geometry(
            latent_channels=vae.latent_channels,
            latent_factor=factor,
            native_size=(width * factor, height * factor),
            prompt_tokens=self._prompt_tokens(model),
            text_layers=self.text_layers(model),
            takes_guidance=unet.time_cond_proj_dim is not None,
            colours=colours_for(vae.latent_channels, *self.colours),
        )

    def chunks(self, model: Model, request: Request) -> int:
        """A token is at least one byte, two of a chunk's are its marks, and words of vectors may leave room free."""
        own, room = model.parts[next(iter(self.encoders))].words, self._prompt_tokens(model) - 2
        most = 1
        for wording in {wording for pair in turns_of(request).pairs for wording in pair}:
            tokens = sum(len(phrase.text.encode()) + 2 * vectors_of(phrase.text, own) for phrase in wording)
            most = max(most, 1 + tokens // room + sum(phrase.breaks for phrase in wording))
        return min(CHUNKS_LIMIT, most)

    def require_fit(self, ref: str, model: Model) -> None:
        """Raise SdcliError unless latents, colours and words are of one size everywhere."""
        unet, vae = _unet(model), _vae(model)
        taken, latents = unet.in_channels, vae.latent_channels
        if taken not in (latents, _with_mask(latents)) or unet.out_channels != latents:
            kinds = {2 * latents: "InstructPix2Pix", latents + 1: "a depth model", latents + 3: "an upscaler"}
            what = f": it looks like {kinds[taken]}" if taken in kinds else ""
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser of"
                f" {unet.out_channels if taken in (latents, _with_mask(latents)) else taken} channels for latents of"
                f" {latents}{what}; give a text-to-image or an inpainting model"
            )
        colours = {vae.in_channels, vae.out_channels}
        if colours != {3}:
            raise SdcliError(
                f"the model {echo(ref)} has an autoencoder for {max(colours - {3})} colours: it takes one for 3"
            )
        words, context = self.word_width(model), unet.cross_attention_dim
        for width in [context] if isinstance(context, int) else context:
            if width != words:
                raise SdcliError(
                    f"the model {echo(ref)} has a denoiser that takes {width} numbers a word and a text encoder that"
                    f" gives {words}: they are of two models; fetch it again"
                )
        require_fit_of_tiny(ref, model, latents, self.geometry(model).latent_factor)
        side = max(self.geometry(model).native_size)
        if side > SIDE_LIMIT:
            raise SdcliError(
                f"{echo(model.parts['unet'].config_file)} sets 'sample_size' to {side} pixels:"
                f" refused; pictures have at most {SIDE_LIMIT}"
            )

    def word_width(self, model: Model) -> int:
        """Numbers that a token of the prompt has: those of all encoders, side by side."""
        return sum(text.hidden_size for text in self._texts(model))

    def text_layers(self, model: Model) -> range:
        """Layers that words may be taken from, counted from the last, 1: first the model's own."""
        return _text_layers(self._texts(model)[0])

    def label(self, model: Model) -> str:
        """`sd15` for Stable Diffusion 1.x, else `sd`: the same parts in other sizes."""
        unet = _unet(model)
        is_first = tuple(unet.block_out_channels) == (320, 640, 1280, 1280) and unet.cross_attention_dim == 768
        return "sd15" if is_first else "sd"

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        """A vocabulary of the size that each text encoder has."""
        return {
            f"{tokenizer}/{name}": text
            for encoder, tokenizer in self.encoders.items()
            for name, text in written_vocabulary(config[encoder]["vocab_size"]).items()
        }

    def _texts(self, model: Model) -> list[TextEncoder]:
        """The settings of the text encoders."""
        return [model.parts[name].settings for name in self.encoders]

    def _prompt_tokens(self, model: Model) -> int:
        """Tokens of a chunk of the prompt, both marks among them: what the tokenizer pads to. 77 in CLIP."""
        most = self._texts(model)[0].max_position_embeddings
        tokenizer: Tokenizer = model.parts[next(iter(self.encoders.values()))].settings
        length = tokenizer.model_max_length
        return min(most, length) if isinstance(length, int) and not isinstance(length, bool) and length > 2 else most


def _with_mask(latents: int) -> int:
    """Channels that a denoiser made for inpainting takes: latents, a mask, and latents of what is outside it."""
    return 2 * latents + 1


def is_told_of_mask(model: Model) -> bool:
    """Whether the denoiser was made for inpainting."""
    return _unet(model).in_channels == _with_mask(_vae(model).latent_channels)


def _text_layers(text: TextEncoder) -> range:
    """Of OpenCLIP, Stable Diffusion 2.x's, the last layer is left out already."""
    own = 2 if text.hidden_act == "gelu" else 1
    return range(own, own + text.num_hidden_layers)


def words_from(component: Component, skip: int | None) -> Component:
    """The text encoder that ends with the layer `skip`, counted as --clip-skip does; None is its own last one."""
    if skip is None:
        return component
    settings: TextEncoder = component.settings
    layers = settings.num_hidden_layers - (skip - _text_layers(settings).start)
    return first_layers(component, layers)


def first_layers(component: Component, layers: int, besides: tuple[str, ...] = ()) -> Component:
    """The text encoder with so many layers, and without what has names that begin with those `besides`."""
    end = component.settings.num_hidden_layers
    left_out = *(f"encoder.layers.{layer}." for layer in range(layers, end)), *besides
    return replace(
        component,
        config=component.config | {"num_hidden_layers": layers},
        tensors={name: origin for name, origin in component.weights().items() if not name.startswith(left_out)},
        adapters={name: some for name, some in component.adapters.items() if not name.startswith(left_out)},
    )


def _unet(model: Model) -> UNet:
    settings: UNet = model.parts["unet"].settings
    return settings


def _vae(model: Model) -> Autoencoder:
    settings: Autoencoder = model.parts["vae"].settings
    return settings
