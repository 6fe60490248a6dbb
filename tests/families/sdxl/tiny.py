"""A whole SDXL of some 0.7 M parameters: all that the real one has, small."""

from __future__ import annotations

from typing import Any

from tests.conftest import TINY

TEXT: dict[str, Any] = {**TINY["text_encoder"], "num_hidden_layers": 3, "eos_token_id": 1999}
TEXT_2: dict[str, Any] = {
    **TEXT,
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "hidden_act": "gelu",
    "projection_dim": 40,
    "pad_token_id": 0,
}
UNET: dict[str, Any] = {
    **TINY["unet"],
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 4],
    "cross_attention_dim": 80,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 88,
}
XL: dict[str, Any] = {
    "seed": 9,
    "unet": UNET,
    "vae": {**TINY["vae"], "scaling_factor": 0.13025},
    "text_encoder": TEXT,
    "text_encoder_2": TEXT_2,
    "tokenizer": TINY["tokenizer"],
    "tokenizer_2": {**TINY["tokenizer"], "pad_token": "!"},
    "scheduler": {
        **TINY["scheduler"],
        "_class_name": "EulerDiscreteScheduler",
        "interpolation_type": "linear",
        "timestep_spacing": "leading",
        "use_karras_sigmas": False,
    },
}
"""Draws 64x64 pixels."""


WIDE: dict[str, Any] = XL | {
    "unet": {
        **UNET,
        "sample_size": 128,
        "block_out_channels": [64, 128, 128],
        "attention_head_dim": [1, 2, 2],
        "norm_num_groups": 32,
        "cross_attention_dim": 128,
        "projection_class_embeddings_input_dim": 96,
    },
    "vae": {
        **XL["vae"],
        "block_out_channels": [32, 32, 32, 64],
        "norm_num_groups": 32,
        "sample_size": 1024,
    },
    "text_encoder": {**TEXT, "vocab_size": 49408, "hidden_size": 64, "num_attention_heads": 1},
    "text_encoder_2": {
        **TEXT_2,
        "vocab_size": 49408,
        "hidden_size": 64,
        "num_attention_heads": 1,
        "projection_dim": 48,
    },
}
"""One with what all of them have and no tensor tells: heads of 64 channels, norms of 32 groups, CLIP's vocabulary."""

REFINER: dict[str, Any] = {
    **{name: WIDE[name] for name in ("seed", "tokenizer_2", "vae", "scheduler")},
    "text_encoder_2": {**WIDE["text_encoder_2"], "eos_token_id": 49407},
    "unet": {
        **WIDE["unet"],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 2,
        "cross_attention_dim": 64,
        "projection_class_embeddings_input_dim": 48 + 5 * 8,
    },
}
"""The refiner: the second text encoder alone, one depth of transformers, none in the last level."""
