"""What kind of model some weights are of, told from their tensors' names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

CHECKPOINT = "a single-file checkpoint"

_TELLTALES = (
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("hada_w1", "a LoHa"),
    ("lokr_w", "a LoKr"),
    ("emb_params", "a textual inversion"),
    ("string_to_param", "a textual inversion"),
    ("x_pad_token", "Z-Image"),
    ("cap_embedder.", "Lumina"),
    ("double_stream_modulation_img.", "FLUX.2"),
    ("single_transformer_blocks.", "Flux"),
    ("single_blocks.", "Flux"),
    ("motion_modules.", "AnimateDiff"),
    ("time_embedding.cond_proj", "a latent consistency model"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("norm1_context.", "Stable Diffusion 3 or Flux"),
    ("double_blocks.", "Flux"),
    ("SelfAttention.", "T5"),
    ("temporal_transformer.", "AnimateDiff"),
    ("time_stack.", "Stable Video Diffusion"),
    ("quantize.", "a VQ autoencoder"),
    ("time_conv_out.", "Stable Video Diffusion"),
    ("vision_model.", "a CLIP vision model"),
    ("add_embedding.", "Stable Diffusion XL"),
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("label_emb.", "Stable Diffusion XL"),
    ("model.diffusion_model.", CHECKPOINT),
)
"""Parts of names that only these have."""

_CONTEXTS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
    1280: "SDXL's refiner",
}
"""Numbers for each token of the prompt, as the denoiser's attention takes them."""


def likely_kind(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The kind of model that has tensors of these names and shapes; None if nothing tells."""
    for part, kind in _TELLTALES:
        if any(part in name for name in shapes):
            return kind
    widths = [shape[-1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2]
    return _CONTEXTS.get(widths[0]) if widths else None


_FOREIGN_LORAS = (
    (r"lora_te2_|text_encoder_2\.|add_embedding", "Stable Diffusion XL"),
    (r"(?:input_blocks|output_blocks)[._]\d+[._]1[._]transformer_blocks[._][1-9]", "Stable Diffusion XL"),
    (r"(?:down|up)_blocks[._]\d[._]attentions[._]\d[._]transformer_blocks[._][1-9]", "Stable Diffusion XL"),
    (r"(?:double|single)_blocks[._]\d|single_transformer_blocks[._]\d", "Flux"),
    (r"joint_blocks[._]\d|transformer_blocks[._]\d+[._]attn[._]add_[qkv]_proj", "Stable Diffusion 3 or Flux"),
    (r"lora_prior_|lora_te3_", "another family"),
    (r"motion_modules[._]", "AnimateDiff"),
    (r"(?:diffusion_model\.|lora_unet_)(?:blocks|layers)[._]\d", "a diffusion transformer, such as Wan's or Lumina's"),
    (r"transformer\.|lora_transformer_", "a diffusion transformer"),
)
"""Names, from their beginning or within, that only files of LoRA for these have."""

_DOWN = r"[._](?:lora_down|lora_A|lora\.down|hada_w1_b)\b.*"

_KEYS_OF_PROMPT = re.compile(rf".*attn2[._](?:processor\.)?to_k{_DOWN}", re.ASCII)
"""The matrix of a LoRA that takes the prompt's tokens: (rank, numbers for each)."""


def foreign_lora(names: Iterable[str]) -> str | None:
    """The family that a file of LoRA is for, if names that no model here has tell so."""
    every = [*names]
    for pattern, kind in _FOREIGN_LORAS:
        found = re.compile(rf"(?:.*[._])?(?:{pattern})", re.ASCII)
        if any(found.match(name) for name in every):
            return kind
    return None


_FLUX_QUERIES = re.compile(
    r".*(?:double_blocks[._]\d+[._]img_attn[._]qkv|transformer_blocks[._]\d+[._]attn[._]to_q(?:kv_mlp_proj)?"
    rf"|single_blocks[._]\d+[._]linear1){_DOWN}",
    re.ASCII,
)
"""The matrix of a LoRA of Flux that takes the stream of tokens: (rank, the denoiser's width)."""

_FLUX_2_ALONE = re.compile(r".*(?:to_qkv_mlp_proj|(?:single|double)_stream_modulation).*", re.ASCII)
"""Names that FLUX.1 has not."""

_FLUX_FUSED = re.compile(r".*single_blocks[._]\d+[._]linear1[._](?:lora_up|lora_B|lora\.up|hada_w1_a)\b.*", re.ASCII)
"""(Rows, rank) of a layer that makes queries, keys, values and what the gated feed-forward takes."""

_FLUX_2_ROWS = 9
"""Of it for each of the width: FLUX.1 has 7, being without a gate."""

_FLUX_2_WIDTHS = {3072: "FLUX.2 [klein] 4B", 4096: "FLUX.2 [klein] 9B", 6144: "FLUX.2 [dev]"}


def lora_kind(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family that it is for, and its size, told by the sides of its matrices; None if nothing tells."""
    widths = [shape[1] for name, shape in shapes.items() if len(shape) > 1 and _KEYS_OF_PROMPT.match(name)]
    return _CONTEXTS.get(widths[0]) if widths else _flux_2_size(shapes)


def _flux_2_size(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Which FLUX.2 a LoRA is for. FLUX.1 is as wide as the smallest one, which must be told by more than that."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    width = next((shape[1] for name, shape in matrices.items() if _FLUX_QUERIES.match(name)), None)
    if width is None:
        return None
    fused = [shape[0] for name, shape in matrices.items() if _FLUX_FUSED.match(name)]
    if width == 3072 and _FLUX_2_ROWS * width not in fused and not any(_FLUX_2_ALONE.match(name) for name in matrices):
        return None
    return _FLUX_2_WIDTHS.get(width)
