"""The parts of a Stable Diffusion as they lie on disk: classes, files, names of tensors."""

from __future__ import annotations

import re

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import SCHEDULER, Part, VocabularyLimits
from sdcli.families.sd.schema import (
    IDLE,
    TEXT_UNSET,
    TOKENIZER_UNSET,
    UNET_UNSET,
    VAE_UNSET,
    Autoencoder,
    TextEncoder,
    Tokenizer,
    UNet,
    corrected_unet,
)
from sdcli.families.sd.spellings import TEXT_PREFIXES, UNET_PREFIXES, text_spellings, unet_spellings
from sdcli.units import MIB

_OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the autoencoder's attention in files written before diffusers 0.15, the published SD 1.5 among them."""


def _renamed_vae(stored: str) -> str:
    if ".attentions." in stored:
        for old, new in _OLD_VAE_NAMES.items():
            stored = stored.replace(old, new)
    return stored


def _renamed_text(stored: str) -> str:
    return stored.removeprefix("text_model.")


def _require_tables(component: Component) -> None:
    """The tables that words are looked up in have as many rows as the config says that there are words."""
    settings: TextEncoder = component.settings
    for table, key, rows in (
        ("token", "vocab_size", settings.vocab_size),
        ("position", "max_position_embeddings", settings.max_position_embeddings),
    ):
        found = component.weights().get(f"embeddings.{table}_embedding.weight")
        stored = found.shape[:1] if found else (rows,)
        if stored != (rows,):
            raise SdcliError(
                f"{echo(component.config_file)} sets {echo(key)} to {rows}, and the weights have {sum(stored)} rows:"
                " they are of two models; fetch both again"
            )


VOCABULARY_LIMITS = VocabularyLimits(
    title="CLIP",
    limits_bytes={"vocab.json": 4 * MIB, "merges.txt": 4 * MIB, "tokenizer.json": 8 * MIB},
    entries=200_000,
    unmerged=514,
)
"""CLIP's files have 1.1, 0.5 and 2.2 MB, 49,408 tokens and 48,894 merges: all tokens but 256 bytes, as many that end a
word, and two marks. A library takes some 500 bytes for each."""

TOKENIZER = Part(
    "tokenizer",
    library="transformers",
    classes=frozenset({"CLIPTokenizer", "CLIPTokenizerFast"}),
    class_key="tokenizer_class",
    default_class="CLIPTokenizer",
    config_file="tokenizer_config.json",
    schema=Tokenizer,
    unset=TOKENIZER_UNSET,
    idle=IDLE,
    vocabulary=VOCABULARY_LIMITS,
)
TEXT_ENCODER = Part(
    "text_encoder",
    library="transformers",
    classes=frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"}),
    class_key="architectures",
    default_class="CLIPTextModel",
    inner_key="text_config",  # of a whole CLIP
    schema=TextEncoder,
    unset=TEXT_UNSET,
    idle=IDLE,
    stem="model",
    renamed=_renamed_text,
    unused=re.compile(
        r"(text_model\.)?embeddings\.position_ids|(text|visual)_projection\.weight|logit_scale|vision_model\..*"
    ),  # the other half of a CLIP
    check=_require_tables,
    option="--text-encoder",
    lora_prefixes=TEXT_PREFIXES,
    spellings=text_spellings,
)
UNET = Part(
    "unet",
    classes=frozenset({"UNet2DConditionModel"}),
    schema=UNet,
    unset=UNET_UNSET,
    idle=IDLE,
    corrected=corrected_unet,
    stem="diffusion_pytorch_model",
    lora_prefixes=UNET_PREFIXES,
    spellings=unet_spellings,
    tells=True,
)
VAE = Part(
    "vae",
    classes=frozenset({"AutoencoderKL"}),
    schema=Autoencoder,
    unset=VAE_UNSET,
    idle=IDLE,
    stem="diffusion_pytorch_model",
    renamed=_renamed_vae,
    unused=re.compile(r"loss\..*|model_ema\..*"),  # what it was trained with
    option="--vae",
)
PARTS = (TOKENIZER, TEXT_ENCODER, SCHEDULER, UNET, VAE)
"""In the order of use."""
