"""A tiny FLUX.2 [klein], and the library's own pipeline of it."""

from __future__ import annotations

from typing import Any

from tests import qwen

LAYERS = 28
"""Of the text encoder: words are taken from the 9th, the 18th and the 27th."""

KLEIN: dict[str, Any] = {
    "seed": 7,
    "dtype": "BF16",
    "tokenizer": qwen.TOKENIZER,
    "text_encoder": {**qwen.TEXT_ENCODER, "num_hidden_layers": LAYERS},
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": True,
    },
    "transformer": {
        "_class_name": "Flux2Transformer2DModel",
        "in_channels": 32,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 3 * qwen.TEXT_ENCODER["hidden_size"],
        "axes_dims_rope": [4, 4, 4, 4],
        "guidance_embeds": False,
    },
    "vae": {
        "_class_name": "AutoencoderKLFlux2",
        "block_out_channels": [16, 16, 32, 32],
        "latent_channels": 8,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
}
"""Of 0.5 M parameters."""
