"""Qwen3 and its tokenizer as parts of a model, whichever family has them."""

from __future__ import annotations

import re
from dataclasses import replace

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Part, VocabularyLimits
from sdcli.families.qwen3.schema import (
    IDLE,
    TEXT_UNSET,
    TOKENIZER_IDLE,
    TOKENIZER_UNSET,
    TextEncoder,
    Tokenizer,
    corrected,
)
from sdcli.families.rules import is_above_0
from sdcli.units import MIB

TOKENS_LIMIT = 512
"""Tokens of a prompt, its frame among them, that pipelines use."""

TOKENIZER_BYTES = 64 * MIB
"""The vocabulary and its merges in memory, and while they are read: 50 MiB were taken of 151,936 entries."""

VOCABULARY_LIMITS = VocabularyLimits(
    title="Qwen",
    limits_bytes={"vocab.json": 8 * MIB, "merges.txt": 8 * MIB, "tokenizer.json": 32 * MIB},
    entries=700_000,
    unmerged=300,
)
"""Qwen's files have 2.8, 1.7 and 11.4 MB, 151,643 tokens and 151,387 merges: all tokens but 256 bytes."""


def _renamed(stored: str) -> str:
    return stored.removeprefix("model.")


def _check(component: Component) -> None:
    settings: TextEncoder = component.settings
    if not is_above_0(settings.rope_theta) or settings.rope_type != "default":
        raise SdcliError(
            f"{echo(component.config_file)} sets 'rope_parameters' to what no known model has: refused; fetch it again"
        )
    table = component.weights().get("embed_tokens.weight")
    if table is not None and table.shape[:1] != (settings.vocab_size,):
        raise SdcliError(
            f"{echo(component.config_file)} sets 'vocab_size' to {settings.vocab_size}, and the weights have"
            f" {table.shape[0]} rows: they are of two models; fetch both again"
        )


def cut_after(component: Component, layers: int) -> Component:
    """The text encoder as far as its first so many layers, without the norm after the last. Raises SdcliError."""
    settings: TextEncoder = component.settings
    if settings.num_hidden_layers < layers:
        raise SdcliError(
            f"{echo(component.config_file)} describes {settings.num_hidden_layers} layers, and the model takes words"
            f" from the {layers}th: it is another model's text encoder; fetch it again"
        )
    left_out = (*(f"layers.{layer}." for layer in range(layers, settings.num_hidden_layers)), "norm.")
    kept = {name: origin for name, origin in component.weights().items() if not name.startswith(left_out)}
    return replace(component, config=component.config | {"num_hidden_layers": layers}, tensors=kept)


TOKENIZER = Part(
    "tokenizer",
    library="transformers",
    classes=frozenset({"Qwen2Tokenizer", "Qwen2TokenizerFast"}),
    class_key="tokenizer_class",
    default_class="Qwen2Tokenizer",
    config_file="tokenizer_config.json",
    schema=Tokenizer,
    unset=TOKENIZER_UNSET,
    idle=TOKENIZER_IDLE,
    vocabulary=VOCABULARY_LIMITS,
    option="--tokenizer",
)
TEXT_ENCODER = Part(
    "text_encoder",
    library="transformers",
    classes=frozenset({"Qwen3ForCausalLM", "Qwen3Model"}),
    class_key="architectures",
    default_class="Qwen3ForCausalLM",
    schema=TextEncoder,
    unset=TEXT_UNSET,
    idle=IDLE,
    corrected=corrected,
    stem="model",
    renamed=_renamed,
    unused=re.compile(r"lm_head\.weight"),
    check=_check,
    option="--text-encoder",
)
