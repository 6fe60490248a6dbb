"""The parts of a Z-Image as they lie on disk, but for those of its words: classes, files, names of tensors."""

from __future__ import annotations

from dataclasses import replace

from sdcli.families.contract import FLOW_SCHEDULER, Part
from sdcli.families.sd.parts import VAE as KL_VAE
from sdcli.families.zimage.schema import AUTOENCODER_UNSET, IDLE, TRANSFORMER_UNSET, Autoencoder, Transformer
from sdcli.families.zimage.spellings import PREFIXES, fused_spellings, spellings

TRANSFORMER = Part(
    "transformer",
    classes=frozenset({"ZImageTransformer2DModel"}),
    schema=Transformer,
    unset=TRANSFORMER_UNSET,
    idle=IDLE,
    stem="diffusion_pytorch_model",
    lora_prefixes=PREFIXES,
    spellings=spellings,
    fused_spellings=fused_spellings,
    tells=True,
)
VAE = replace(KL_VAE, schema=Autoencoder, unset=AUTOENCODER_UNSET)
PARTS = (FLOW_SCHEDULER, TRANSFORMER, VAE)
"""In the order of use, after those of the words."""
