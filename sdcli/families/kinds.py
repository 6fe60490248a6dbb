"""What kind of model some weights are of, told from their tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

CHECKPOINT = "a single-file checkpoint"

_TELLTALES = (
    ("add_embedding.", "Stable Diffusion XL"),
    ("conditioner.embedders.", "Stable Diffusion XL"),
    ("label_emb.", "Stable Diffusion XL"),
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("hada_w1", "a LoHa"),
    ("lokr_w", "a LoKr"),
    ("emb_params", "a textual inversion"),
    ("string_to_param", "a textual inversion"),
    ("cap_embedder.", "Z-Image or Lumina"),
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
