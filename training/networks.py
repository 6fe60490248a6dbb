"""The shapes of the four components, and what they are called on disk."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from training.words import LENGTH

SCALING_FACTOR = 0.18215
"""Stable Diffusion's own. The autoencoder is rescaled to it, so that scaled latents have a deviation of 1."""

LATENTS = 8
"""Channels of the latents: with the four of Stable Diffusion 1.5 the edges of small glyphs stay soft."""

NOISE = 0.03
"""Deviation of the autoencoder's posterior, as a share of the latents' own: the same for every picture."""

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
"""v-prediction (Salimans and Ho 2022) with zero terminal SNR and trailing timesteps (Lin et al. 2023,
https://arxiv.org/abs/2305.08891): a flat background of any brightness can be drawn exactly."""


def vae_config(size: str = "full") -> dict[str, Any]:
    """The autoencoder: 8x reduction, convolutions only."""
    widths = {"full": [32, 64, 96, 128], "tiny": [8, 8, 16, 24]}[size]
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": side(size),
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": LATENTS,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "scaling_factor": SCALING_FACTOR,
    }


def unet_config(size: str = "full") -> dict[str, Any]:
    """The denoiser: attention to itself and to the words at half and at a quarter of the latents' side."""
    widths = {"full": [64, 128, 192], "tiny": [16, 16, 32]}[size]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": side(size) // 8,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "layers_per_block": 1,
        "block_out_channels": widths,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": text_width(size),
        "attention_head_dim": {"full": 4, "tiny": 2}[size],
        "norm_num_groups": 8,
    }


def text_config(tokens: int, size: str = "full") -> dict[str, Any]:
    """The text encoder for a vocabulary of so many tokens, the last two of them the begin and end marks."""
    width = text_width(size)
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": tokens,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": {"full": 4, "tiny": 1}[size],
        "num_attention_heads": {"full": 4, "tiny": 2}[size],
        "max_position_embeddings": LENGTH,
        "hidden_act": "quick_gelu",
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }


def text_width(size: str) -> int:
    """Channels of the context."""
    return {"full": 192, "tiny": 32}[size]


def side(size: str) -> int:
    """Side of the pictures, in pixels."""
    return {"full": 256, "tiny": 64}[size]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("_class_name", "architectures", "model_type")}


def make_vae(size: str = "full") -> AutoencoderKL:
    """A new autoencoder whose posterior has a fixed deviation of NOISE (its log-variance rows do not depend on x)."""
    vae = AutoencoderKL(**_settings(vae_config(size)))
    fix_deviation(vae, NOISE)
    return vae


def fix_deviation(vae: AutoencoderKL, deviation: float) -> None:
    """Make the posterior's deviation a constant: the second half of quant_conv's rows has no weights, only a bias."""
    channels = vae.config["latent_channels"]
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = 2 * torch.log(torch.tensor(deviation))


def make_unet(size: str = "full") -> UNet2DConditionModel:
    """A new denoiser."""
    return UNet2DConditionModel(**_settings(unet_config(size)))


def make_text_encoder(tokens: int, size: str = "full") -> CLIPTextModel:
    """A new text encoder, of the class that sdcli runs; its context is `last_hidden_state`."""
    return CLIPTextModel(CLIPTextConfig(**_settings(text_config(tokens, size)), attn_implementation="sdpa"))


def make_scheduler() -> Any:
    """The scheduler that the model is trained and run with."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**_settings(SCHEDULER))


def normalise_latents(vae: AutoencoderKL, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Give the latents a mean of 0 and a deviation of 1/SCALING_FACTOR in each channel; the pictures stay the same.

    `mean` and `deviation` (channels,) are today's. quant_conv and post_quant_conv are 1x1 convolutions, so the
    change is exact: z' = (z - m) / (s f) goes into the one and its inverse, z = z' s f + m, into the other.
    """
    scale = deviation * SCALING_FACTOR
    channels = len(mean)
    with torch.no_grad():
        before, after = vae.quant_conv, vae.post_quant_conv
        before.weight[:channels] /= scale[:, None, None, None]
        before.bias[:channels] = (before.bias[:channels] - mean) / scale
        after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
        after.weight *= scale[None, :, None, None]
    fix_deviation(vae, NOISE / SCALING_FACTOR)


def quiet_encoder(vae: AutoencoderKL, factor: float = 1 / 32) -> None:
    """Scale what the encoder adds up at its smallest side, so that FP16 can hold it; the latents stay the same.

    Training leaves sums of up to 57,000 there, and FP16 ends at 65,504. Every reader of these sums begins with a
    group norm, to which their scale is nothing (but for its epsilon of 1e-6).
    """
    blocks = [*vae.encoder.down_blocks[-1].resnets, *vae.encoder.mid_block.resnets]
    if blocks[0].conv_shortcut is None:
        raise ValueError("the first block of the smallest side hands its input on unscaled: give it another width")
    writers = [blocks[0].conv_shortcut, *(block.conv2 for block in blocks)]
    with torch.no_grad():
        for writer in writers:
            writer.weight *= factor
            writer.bias *= factor


def shadow(module: nn.Module) -> nn.Module:
    """A copy that follows the module as an exponential mean of its weights."""
    import copy

    return copy.deepcopy(module).eval().requires_grad_(False)


@torch.no_grad()
def follow(shadows: list[nn.Module], modules: list[nn.Module], step: int, longest: float = 0.999) -> None:
    """Move each shadow towards its module: decay min(longest, (1 + step) / (10 + step)), quick at first."""
    decay = min(longest, (1 + step) / (10 + step))
    theirs: list[torch.Tensor] = [value for module in shadows for value in module.parameters()]
    ours: list[torch.Tensor] = [value.detach() for module in modules for value in module.parameters()]
    torch._foreach_lerp_(theirs, ours, 1 - decay)
