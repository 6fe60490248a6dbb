"""The parts of an SDXL as they lie on disk: Stable Diffusion's, and a second text encoder with its tokenizer."""

from __future__ import annotations

import re
from dataclasses import replace

from sdcli.families.contract import SCHEDULER
from sdcli.families.sd.parts import TEXT_ENCODER, TOKENIZER, UNET, VAE
from sdcli.families.sdxl.schema import UNET_XL_UNSET, VAE_XL_UNSET, AutoencoderXL, ProjectedTextEncoder, UNetXL

TOKENIZER_2 = replace(TOKENIZER, name="tokenizer_2")

SCALING_FACTOR = 0.13025
"""Of SDXL's own autoencoder's latents, and of those that its tiny one and colours are for."""

PROJECTION = "text_projection"
"""The second text encoder's last matrix."""

TEXT_ENCODER_2 = replace(
    TEXT_ENCODER,
    name="text_encoder_2",
    classes=frozenset({"CLIPTextModelWithProjection"}),
    default_class="CLIPTextModelWithProjection",
    schema=ProjectedTextEncoder,
    unused=re.compile(
        r"(text_model\.)?embeddings\.position_ids|visual_projection\.weight|logit_scale|vision_model\..*"
    ),
    option="--text-encoder-2",
    lora_prefixes=("lora_te2_", "text_encoder_2.", "te2."),
)
UNET_XL = replace(UNET, schema=UNetXL, unset=UNET_XL_UNSET)
VAE_XL = replace(
    VAE,
    schema=AutoencoderXL,
    unset=VAE_XL_UNSET,
    of_model=("latents_mean", "latents_std", "scaling_factor"),
)
PARTS = (TOKENIZER, TEXT_ENCODER, TOKENIZER_2, TEXT_ENCODER_2, SCHEDULER, UNET_XL, VAE_XL)
"""In the order of use."""
