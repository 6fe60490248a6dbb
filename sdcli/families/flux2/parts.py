"""The parts of a FLUX.2 as they lie on disk, but for those of its words: classes, files, names of tensors."""

from __future__ import annotations

import re

from sdcli.domain import Component, Origin
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import FLOW_SCHEDULER, Part
from sdcli.families.flux2.schema import AUTOENCODER_UNSET, IDLE, TRANSFORMER_UNSET, Autoencoder, Transformer
from sdcli.families.flux2.spellings import PREFIXES, fused_spellings, spellings, swapped_spellings

PATCH = 2
"""Latents of the autoencoder that a token of the denoiser has, along each side."""

STATISTICS = ("bn.running_mean", "bn.running_var")
"""By which latents are normed: tensors beside the autoencoder's weights."""


def statistics_of(component: Component) -> tuple[Origin, Origin]:
    """Where an autoencoder has mean and variance of its latents. Raises SdcliError where it lacks them."""
    count = component.settings.latent_channels * PATCH**2
    found = []
    for name in STATISTICS:
        every = ((file, one) for file in component.files for one in file.tensors)
        file, stored = next(((file, one) for file, one in every if f".{one}".endswith(f".{name}")), (None, name))
        if file is None:
            raise SdcliError(
                f"{echo(component.folder)} lacks {echo(name)}, by which latents are normed: fetch it again"
            )
        info = file.tensors[stored]
        if info.shape != (count,) or info.dtype not in ("F32", "F16", "BF16"):
            raise SdcliError(
                f"{echo(file.path)}: tensor {echo(stored)} is not of {count} numbers, one for each channel:"
                " fetch it again"
            )
        found.append(Origin(file.path, stored, info))
    return found[0], found[1]


def _require_statistics(component: Component) -> None:
    statistics_of(component)


TRANSFORMER = Part(
    "transformer",
    classes=frozenset({"Flux2Transformer2DModel"}),
    schema=Transformer,
    unset=TRANSFORMER_UNSET,
    idle=IDLE,
    stem="diffusion_pytorch_model",
    lora_prefixes=PREFIXES,
    spellings=spellings,
    fused_spellings=fused_spellings,
    swapped_spellings=swapped_spellings,
    tells=True,
)
VAE = Part(
    "vae",
    classes=frozenset({"AutoencoderKLFlux2"}),
    schema=Autoencoder,
    unset=AUTOENCODER_UNSET,
    idle=IDLE,
    stem="diffusion_pytorch_model",
    unused=re.compile(r"bn\..*|loss\..*"),
    check=_require_statistics,
    option="--vae",
)
PARTS = (FLOW_SCHEDULER, TRANSFORMER, VAE)
"""In the order of use, after those of the words."""
