"""Stable Diffusion XL, as the host knows it (Podell et al. 2023, https://arxiv.org/abs/2307.01952).

Stable Diffusion with two text encoders, and a denoiser that is told of the whole prompt and of the picture's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sdcli.domain import Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.colours import SDXL, Colours
from sdcli.families.contract import Defaults, Geometry, Part, Stage
from sdcli.families.sd.family import TOKENIZER_BYTES, StableDiffusion
from sdcli.families.sd.vocabulary import written_vocabulary
from sdcli.families.sdxl.parts import PARTS
from sdcli.families.sdxl.schema import ProjectedTextEncoder, UNetXL

ALIGNED_LEVELS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html, of SDXL."""

OWN_LAYER = 2
"""Of both text encoders the last layer but one gives the words: counted from the last, 1."""

SIZES = 6
"""Numbers that tell of the picture's size: of the original, of what was cut off, and of the picture."""

ZEROS = "force_zeros_for_empty_prompt"
"""The key of a model's index that says that an empty negative prompt is zeros rather than words."""


class StableDiffusionXL(StableDiffusion):
    """SDXL 1.0, and whatever has the same parts in other sizes."""

    name = "sdxl"
    network = "sdcli.families.sdxl.network"
    pipelines: tuple[str, ...] = (
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    index_extras: Mapping[str, object] = {ZEROS: True}
    parts: tuple[Part, ...] = PARTS
    defaults = Defaults(steps=25, guidance=5.0, aligned_levels=ALIGNED_LEVELS)
    colours: tuple[Colours, ...] = (SDXL,)

    def stages(self, model: Model, request: Request) -> tuple[Stage, ...]:
        """As Stable Diffusion's, with both text encoders in the first."""
        words, *others = super().stages(model, request)
        words = replace(
            words,
            lends=("text_encoder", "text_encoder_2"),
            title="the text encoder",
            reads=("tokenizer", "tokenizer_2"),
            extra_bytes=2 * TOKENIZER_BYTES,
        )
        return words, *others

    def geometry(self, model: Model) -> Geometry:
        """As Stable Diffusion's; words are taken from the same layer of both encoders."""
        depth = min(model.parts[name].settings.num_hidden_layers for name in ("text_encoder", "text_encoder_2"))
        return replace(super().geometry(model), text_layers=range(OWN_LAYER, 1 + depth))

    def require_fit(self, ref: str, model: Model) -> None:
        """Besides, the denoiser takes as many numbers of the whole prompt and of the size as there are."""
        super().require_fit(ref, model)
        unet: UNetXL = model.parts["unet"].settings
        pooled, taken = _second(model).projection_dim, unet.projection_class_embeddings_input_dim
        given = pooled + SIZES * (unet.addition_time_embed_dim or 0)
        if taken != given:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser that takes {taken} numbers of prompt and size, and there are"
                f" {given}: it is not SDXL's base model; give one that is"
            )

    def label(self, model: Model) -> str:
        """`sdxl`, whatever its sizes."""
        return self.name

    def texts(self, config: Mapping[str, Any]) -> dict[str, str]:
        """A vocabulary of the size that each text encoder has."""
        return {
            f"tokenizer{number}/{name}": text
            for number in ("", "_2")
            for name, text in written_vocabulary(config[f"text_encoder{number}"]["vocab_size"]).items()
        }

    def word_width(self, model: Model) -> int:
        """Both encoders' side by side."""
        return super().word_width(model) + _second(model).hidden_size


def has_zeros(model: Model) -> bool:
    """Whether an empty negative prompt is zeros."""
    return bool(model.said.get(ZEROS, True))


def _second(model: Model) -> ProjectedTextEncoder:
    settings: ProjectedTextEncoder = model.parts["text_encoder_2"].settings
    return settings
