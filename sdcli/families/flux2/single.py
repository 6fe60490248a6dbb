"""FLUX.2 in files of its own: a denoiser, an autoencoder, Qwen3, each alone or all in one.

No file brings a config: sizes are those of the tensors, and what none tells is what all published models have.
"""

from __future__ import annotations

import re
from typing import Any

from sdcli.domain import Component, Prediction, WeightFile
from sdcli.families.contract import FLOW_CLASS, Elsewhere, Found, Numbers
from sdcli.families.flux2.family import WORD_LAYERS, is_base
from sdcli.families.flux2.original import autoencoder_names, transformer_names
from sdcli.families.flux2.parts import STATISTICS, TRANSFORMER, VAE
from sdcli.families.flux2.schema import AXES
from sdcli.families.qwen3.single import TEXT_SEARCH, TOKENIZER_ELSEWHERE, text_encoder_elsewhere
from sdcli.families.sd.single import vae_config
from sdcli.families.single_file import Names, Search, Shapes, levels_of, networks_in
from sdcli.families.tiny.single import TINY_SEARCH

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift": 3.0,
}
"""That of all klein models."""

_ASSUMED = "distilled to 4 steps, assumed, as no tensor tells; if it is a base model, give --steps 50 --guidance 4"
_VAE_ELSEWHERE = Elsewhere(
    "flux2-vae.safetensors",
    ("vae",),
    ("flux2-vae*.safetensors", "flux2_vae*.safetensors", "flux-2-vae*.safetensors", "flux.2-vae*.safetensors"),
    ("Comfy-Org/flux2-dev/split_files/vae/flux2-vae.safetensors",),
)


def parts_of(file: WeightFile, numbers: Numbers, prediction: Prediction | None) -> Found:
    """The parts that a file has. Raises SdcliError for types that are not read."""
    found = networks_in(file, (TRANSFORMER_SEARCH, TEXT_SEARCH, VAE_SEARCH, TINY_SEARCH))
    if "transformer" not in found:
        return Found(found)
    found["scheduler"] = Component("scheduler", FLOW_CLASS, SCHEDULE, file.path, config_name="")
    width = found["transformer"].config["joint_attention_dim"] // len(WORD_LAYERS)
    is_told = is_base(file.path.stem) or re.match(r"flux[._-]?2[._-]klein", file.path.stem, re.IGNORECASE)
    notes = () if is_told else (_ASSUMED,)
    elsewhere = {
        "tokenizer": TOKENIZER_ELSEWHERE,
        "text_encoder": text_encoder_elsewhere(width),
        "vae": _VAE_ELSEWHERE,
    }
    return Found(found, notes, elsewhere=elsewhere)


def _transformer_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    width, channels = shapes["x_embedder.weight"]
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    return {
        "in_channels": channels,
        "num_layers": len(levels_of(shapes, "transformer_blocks")),
        "num_single_layers": len(levels_of(shapes, "single_transformer_blocks")),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "timestep_guidance_channels": shapes["time_guidance_embed.timestep_embedder.linear_1.weight"][1],
        "mlp_ratio": shapes["transformer_blocks.0.ff.linear_out.weight"][1] / width,
        "axes_dims_rope": [head // AXES] * AXES,
        "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in shapes,
    }


def _vae_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    config = vae_config(shapes, names)
    up = levels_of(shapes, "decoder.up_blocks")
    decoder = [shapes[f"decoder.up_blocks.{level}.resnets.0.conv2.weight"][0] for level in reversed(up)]
    if decoder != config["block_out_channels"]:
        config["decoder_block_out_channels"] = decoder
    return config | {"sample_size": 1024}


TRANSFORMER_SEARCH = Search(
    TRANSFORMER,
    re.compile(r"double_stream_modulation_img\.lin(ear)?\.weight"),
    ("model.diffusion_model.", "diffusion_model.", "transformer.", ""),
    transformer_names,
    _transformer_config,
)
VAE_SEARCH = Search(
    VAE,
    re.compile(re.escape(STATISTICS[0])),
    ("vae.", "first_stage_model.", ""),
    autoencoder_names,
    _vae_config,
)
