"""A tiny Z-Image, and the library's own pipeline of it."""

from __future__ import annotations

from typing import Any

from sdcli.domain import Request
from tests import qwen

FOX = Request("a fox in the snow", "ugly and blurred", 64, 96, 4, 1.0, 1234, 1)

TINY: dict[str, Any] = {
    "seed": 11,
    "tokenizer": qwen.TOKENIZER,
    "text_encoder": qwen.TEXT_ENCODER,
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "use_dynamic_shifting": False,
        "shift": 3.0,
    },
    "transformer": {
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": 8,
        "dim": 48,
        "n_layers": 3,
        "n_refiner_layers": 2,
        "n_heads": 3,
        "n_kv_heads": 3,
        "norm_eps": 1e-5,
        "qk_norm": True,
        "cap_feat_dim": qwen.TEXT_ENCODER["hidden_size"],
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": [4, 6, 6],
        "axes_lens": [1536, 512, 512],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [16, 16, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 8,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
}
"""Of 0.3 M parameters."""
