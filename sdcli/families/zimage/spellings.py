"""How files of LoRA spell the modules of Z-Image's denoiser: by diffusers' names or the original's, which fuse some."""

from __future__ import annotations

from collections.abc import Mapping

from sdcli.domain import Component

PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_", "transformer.", "diffusion_model.", "model.diffusion_model.")

_ORIGINAL = {
    ".attention.to_out.0": ".attention.out",
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.": "final_layer.",
}
FUSED = ("to_q", "to_k", "to_v")
"""Of the original's `qkv`, one after another."""


def spellings(component: Component, module: str) -> list[str]:
    """diffusers' name, the one without the number of the way out, and the original's."""
    original = module
    for ours, theirs in _ORIGINAL.items():
        original = original.replace(ours, theirs)
    return [*dict.fromkeys((module, module.removesuffix(".0") if module.endswith(".to_out.0") else module, original))]


def fused_spellings(component: Component, module: str) -> Mapping[str, tuple[int, int]]:
    """The original's name of queries, keys and values in one, and which share of three the module is."""
    home, _, last = module.rpartition(".")
    return {f"{home}.qkv": (FUSED.index(last), len(FUSED))} if last in FUSED else {}
