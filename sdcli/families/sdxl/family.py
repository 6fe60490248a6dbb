"""Stable Diffusion XL, as the host knows it (Podell et al. 2023, https://arxiv.org/abs/2307.01952).

Stable Diffusion with two text encoders, and a denoiser that is told of the whole prompt and of the picture's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sdcli.domain import Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.colours import SDXL, Colours, moved
from sdcli.families.contract import Defaults, Geometry, Part
from sdcli.families.sd.family import StableDiffusion
from sdcli.families.sdxl.parts import PARTS, SCALING_FACTOR
from sdcli.families.sdxl.schema import ProjectedTextEncoder, UNetXL
from sdcli.families.tiny.parts import TINY

ALIGNED_LEVELS = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html, of SDXL."""

OWN_LAYER = 2
"""Of both text encoders the last layer but one gives the words: counted from the last, 1."""

SIZES = 6
"""Numbers that tell of the picture's size: of the original, of what was cut off, and of the picture."""

PLAYGROUND_GUIDANCE = 3.0
"""https://huggingface.co/playgroundai/playground-v2.5-1024px-aesthetic"""

Numbers = tuple[float, ...]

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
    extras: tuple[Part, ...] = (replace(TINY, pulled="madebyollin/taesdxl"),)
    encoders: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    told = SIZES
    """Numbers that the denoiser is told besides the whole prompt."""
    defaults = Defaults(steps=25, guidance=5.0, aligned_levels=ALIGNED_LEVELS)
    colours: tuple[Colours, ...] = (SDXL,)

    def geometry(self, model: Model) -> Geometry:
        """As Stable Diffusion's; sizes are among what the denoiser is told."""
        told_sizes, vae = frozenset({"original_size", "crop", "target_size"}), model.parts["vae"].settings
        geometry = replace(super().geometry(model), told_sizes=told_sizes)
        if vae.statistics is None:
            return geometry
        means, deviations = vae.statistics
        gains = [SCALING_FACTOR * deviation / vae.scaling_factor for deviation in deviations]
        colours = geometry.colours and moved(geometry.colours, gains, [SCALING_FACTOR * mean for mean in means])
        return replace(geometry, defaults=replace(self.defaults, guidance=PLAYGROUND_GUIDANCE), colours=colours)

    def text_layers(self, model: Model) -> range:
        """Words are taken from the same layer of all encoders."""
        depth = min(text.num_hidden_layers for text in self._texts(model))
        return range(OWN_LAYER, 1 + depth)

    def require_fit(self, ref: str, model: Model) -> None:
        """Besides, the denoiser takes as many numbers of the whole prompt and of the size as there are."""
        super().require_fit(ref, model)
        unet: UNetXL = model.parts["unet"].settings
        pooled, taken = _second(model).projection_dim, unet.projection_class_embeddings_input_dim
        given = pooled + self.told * (unet.addition_time_embed_dim or 0)
        if taken != given:
            raise SdcliError(
                f"the model {echo(ref)} has a denoiser that takes {taken} numbers of prompt and size, and there are"
                f" {given}: it is neither SDXL's base model nor its refiner; give one that is"
            )

    def label(self, model: Model) -> str:
        """`sdxl`, whatever its sizes."""
        return self.name

    def has_zeros(self, model: Model) -> bool:
        """Whether an empty negative prompt is zeros."""
        return bool(model.said.get(ZEROS, self.index_extras[ZEROS]))

    def numbers(self, request: Request) -> tuple[Numbers, Numbers]:
        """What the denoiser is told with the negative prompt and with the prompt: height and width of the original,
        what was cut off above and left, and height and width of the picture.

        As in diffusers' StableDiffusionXLPipeline._get_add_time_ids, where nobody says otherwise the same for both.
        """
        size = request.width, request.height
        original, target, (left, top) = request.original_size or size, request.target_size or size, request.crop
        told = (*original[::-1], top, left, *target[::-1])
        return told, told


def _second(model: Model) -> ProjectedTextEncoder:
    settings: ProjectedTextEncoder = model.parts["text_encoder_2"].settings
    return settings
