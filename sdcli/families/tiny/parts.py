"""A tiny autoencoder as a part that may come in place of a model's own when pictures are decoded."""

from __future__ import annotations

import re

from sdcli.domain import Model
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Part
from sdcli.families.tiny.schema import IDLE, UNSET, TinyAutoencoder

TINY = Part(
    "tiny_decoder",
    classes=frozenset({"AutoencoderTiny"}),
    default_class="AutoencoderTiny",
    schema=TinyAutoencoder,
    unset=UNSET,
    idle=IDLE,
    stem="diffusion_pytorch_model",
    unused=re.compile(r"encoder\..*"),
    option="--tiny-decoder",
    pulled="madebyollin/taesd",
)
"""Stable Diffusion's."""


def require_fit(ref: str, model: Model, channels: int, factor: int) -> None:
    """Raise SdcliError where the model has one that is for other latents: of other channels, or of another size."""
    part = model.parts.get(TINY.name)
    if part is None:
        return
    settings: TinyAutoencoder = part.settings
    if (settings.latent_channels, settings.latent_factor) != (channels, factor):
        raise SdcliError(
            f"{echo(part.folder)} is a tiny autoencoder for latents of {settings.latent_channels} channels, and those"
            f" of {echo(ref)} have {channels}: give that of its family"
        )
