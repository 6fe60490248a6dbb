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
