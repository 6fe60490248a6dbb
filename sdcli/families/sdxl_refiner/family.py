"""SDXL's refiner, as the host knows it (Podell et al. 2023, https://arxiv.org/abs/2307.01952, section 2.5).

Stable Diffusion XL with its second text encoder alone, made for the last steps of a picture that is there. It is told
how beautiful the picture is to be, instead of how large. Its network is that of families/sdxl/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sdcli.domain import Model, Request
from sdcli.families.contract import Geometry, Part
from sdcli.families.sdxl.family import ZEROS, Numbers, StableDiffusionXL
from sdcli.families.sdxl_refiner.parts import PARTS

SCORE, NEGATIVE_SCORE = 6.0, 2.5
"""Of 10: what the picture is to be taken for, and what not; of diffusers' StableDiffusionXLImg2ImgPipeline."""

EDITS = "SDXL's refiner, which goes over a picture that is there"

SIZES_AND_SCORE = 5
"""Numbers that its denoiser is told besides the whole prompt."""

SCORED = "requires_aesthetics_score"
"""The key of a model's index that says that its denoiser takes such a score."""


class StableDiffusionXLRefiner(StableDiffusionXL):
    """The refiner of SDXL 1.0."""

    name = "sdxl_refiner"
    pipelines: tuple[str, ...] = ("StableDiffusionXLImg2ImgPipeline",)
    index_extras: Mapping[str, object] = {ZEROS: False, SCORED: True}
    parts: tuple[Part, ...] = PARTS
    encoders: Mapping[str, str] = {"text_encoder_2": "tokenizer_2"}
    told = SIZES_AND_SCORE

    def geometry(self, model: Model) -> Geometry:
        """As SDXL's; it draws nothing from words alone, and has a score for the picture's own size."""
        geometry = super().geometry(model)
        return replace(geometry, edits=EDITS, told_sizes=geometry.told_sizes - {"target_size"})

    def label(self, model: Model) -> str:
        """`sdxl-refiner`, whatever its sizes."""
        return "sdxl-refiner"

    def numbers(self, request: Request) -> tuple[Numbers, Numbers]:
        """Sizes of the original, what was cut off, and a score in place of the picture's own size."""
        (height, width, top, left, *_), _ = super().numbers(request)
        return (height, width, 0, 0, NEGATIVE_SCORE), (height, width, top, left, SCORE)
