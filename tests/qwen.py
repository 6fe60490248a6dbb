"""A tiny Qwen3 and its tokenizer, as parts of the models that have them."""

from __future__ import annotations

from typing import Any

TEXT_ENCODER: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""Four layers, and two queries to a key."""

TOKENIZER: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "padding_side": "right", "pad_token": "<|endoftext|>"}

TEMPLATE = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
"""Qwen3's published chat template, as far as it concerns one question."""
