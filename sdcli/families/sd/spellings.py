"""How files of LoRA spell the modules that they change: diffusers' names, transformers' names, and the original's."""

from __future__ import annotations

from functools import lru_cache

from sdcli.domain import Component
from sdcli.families.sd.ldm_names import original_blocks, original_name

UNET_PREFIXES = ("lora_unet_", "lycoris_", "unet.", "diffusion_model.", "model.diffusion_model.")
TEXT_PREFIXES = ("lora_te_", "lora_te1_", "text_encoder.", "te.")

_OLD_ATTENTION = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
"""Names of the text encoder's attention in files written before diffusers 0.17."""


def unet_spellings(component: Component, module: str) -> list[str]:
    """diffusers' name, the one without the number of the way out, and the original's."""
    spelled = [module, *([module.removesuffix(".0")] if module.endswith(".to_out.0") else [])]
    original = original_name(_blocks(component), module)
    return [*spelled, original] if original is not None else spelled


def text_spellings(component: Component, module: str) -> list[str]:
    """transformers' name, today's and the one before 5.6; none of the tables that words are looked up in."""
    if module.startswith("embeddings."):
        return []
    home, _, last = module.rpartition(".")
    names = [module, f"{home}.{_OLD_ATTENTION[last]}"] if last in _OLD_ATTENTION else [module]
    return [*names, *(f"text_model.{name}" for name in names)]


@lru_cache(maxsize=4)
def _blocks(component: Component) -> dict[str, str]:
    return {ours: theirs for theirs, ours in original_blocks(component.settings).items()}
