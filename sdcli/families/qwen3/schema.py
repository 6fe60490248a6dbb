"""The settings of Qwen3 and of its tokenizer, as transformers 5 has them (Qwen3Config, Qwen2Tokenizer)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sdcli.families.contract import Settings
from sdcli.families.rules import among, is_above_0, is_layer_count, is_size, setting

PLAIN = "default"
"""Rotary positions without anything for longer texts than a model was trained with."""


@dataclass(frozen=True)
class TextEncoder(Settings):
    """A Qwen3 (Yang et al. 2025, https://arxiv.org/abs/2505.09388), of which the hidden states are used."""

    vocab_size: int = setting(151936, is_size)
    hidden_size: int = setting(4096, is_size)
    intermediate_size: int = setting(22016, is_size)
    num_hidden_layers: int = setting(32, is_layer_count)
    num_attention_heads: int = setting(32, is_size)
    num_key_value_heads: int = setting(32, is_size)
    head_dim: int = setting(128, is_size)
    hidden_act: str = setting("silu", among("silu"))
    rms_norm_eps: float = setting(1e-6, is_above_0)
    rope_theta: float = setting(10_000.0, is_above_0)
    rope_type: str = setting(PLAIN, among(PLAIN))

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Each of its keys serves the same number of queries, and pairs of numbers are turned."""
        if self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"has {self.num_attention_heads} 'num_attention_heads', which {self.num_key_value_heads}"
                " 'num_key_value_heads' do not divide"
            )
        if self.head_dim % 2:
            yield f"has a 'head_dim' of {self.head_dim}, which is odd"


def corrected(config: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of rotary positions that transformers 5 keeps in a table of their own."""
    rotary = table.get("rope_parameters")
    if not isinstance(rotary, dict):
        return config
    kept = {key: rotary[key] for key in ("rope_theta", "rope_type") if key in rotary}
    return config | kept


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TEXT_UNSET: dict[str, object] = dict.fromkeys(
    ("attention_bias", "rope_scaling", "use_sliding_window", "quantization_config")
)

IDLE = _words(
    # of use in training or in writing text only, or said of a window that there is none of
    "attention_dropout bos_token_id eos_token_id pad_token_id initializer_range max_position_embeddings "
    "max_window_layers sliding_window layer_types tie_word_embeddings use_cache rope_parameters pretraining_tp"
)
"""Keys that the library writes and that have no say in a picture."""


@dataclass(frozen=True)
class Tokenizer(Settings):
    """The tokenizer's settings: a table of the marks that its vocabulary lacks, by their numbers."""

    added_tokens_decoder: object = None


TOKENIZER_UNSET: dict[str, object] = {
    **dict.fromkeys(("fast_tokenizer_files", "gguf_file", "add_prefix_space", "add_bos_token", "add_eos_token")),
    "padding_side": "right",
}

TOKENIZER_IDLE = _words(
    "additional_special_tokens bos_token eos_token pad_token unk_token chat_template clean_up_tokenization_spaces "
    "errors model_max_length split_special_tokens tokenizer_class extra_special_tokens backend is_local "
    "special_tokens_map_file tokenizer_file model_specific_special_tokens local_files_only"
)
