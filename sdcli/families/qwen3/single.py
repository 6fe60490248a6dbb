"""Qwen3 in a file of its own or in a whole checkpoint: transformers' names, below a prefix or none."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sdcli.families.contract import Elsewhere
from sdcli.families.qwen3.parts import TEXT_ENCODER
from sdcli.families.single_file import Names, Piece, Search, Shapes, each_once, levels_of

ROPE_THETA = 1_000_000.0
"""Of all published ones."""

_FOLDERS = ("text_encoders", "clip")
_ORG = "Comfy-Org"
_SIZES = {
    2560: ("4b", f"{_ORG}/z_image_turbo/split_files/text_encoders/qwen_3_4b.safetensors"),
    4096: ("8b", f"{_ORG}/flux2-klein-9B/split_files/text_encoders/qwen_3_8b.safetensors"),
}
"""By the numbers for each word: what people call the size, and where it is."""

TOKENIZER_ELSEWHERE = Elsewhere(
    "tokenizer.json",
    (*_FOLDERS, "tokenizer", "comfy/text_encoders/qwen25_tokenizer"),
    (),
    (
        "Qwen/Qwen3-4B/tokenizer.json",
        "Qwen/Qwen3-8B/tokenizer.json",
        *(f"Tongyi-MAI/{name}" for name in ("Z-Image-Turbo", "Z-Image")),
        *(f"black-forest-labs/FLUX.2-klein-{size}" for size in ("4B", "base-4B", "9B", "base-9B")),
        "Qwen/Qwen3-4B",
        "Qwen/Qwen3-8B",
    ),
)
"""All of them have the same one, and so has ComfyUI."""


def text_encoder_elsewhere(width: int) -> Elsewhere:
    """Of the text encoder that gives so many numbers for each word."""
    size, ref = _SIZES.get(width, _SIZES[2560])
    written = [f"{name}{dash}{size}" for name in ("qwen_3", "qwen3", "qwen-3") for dash in ("_", "-")]
    return Elsewhere(f"qwen_3_{size}.safetensors", _FOLDERS, tuple(f"{name}*.safetensors" for name in written), (ref,))


def _pieces(names: Names) -> dict[str, Piece]:
    return each_once((name.removeprefix("model."), Piece(name)) for name in names)


def _config(shapes: Shapes, names: Names) -> dict[str, Any]:
    words, width = shapes["embed_tokens.weight"]
    (head,) = shapes["layers.0.self_attn.q_norm.weight"]
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": len(levels_of(shapes, "layers")),
        "num_attention_heads": shapes["layers.0.self_attn.q_proj.weight"][0] // head,
        "num_key_value_heads": shapes["layers.0.self_attn.k_proj.weight"][0] // head,
        "head_dim": head,
        "rope_theta": ROPE_THETA,
    }


def _is_alone(names: Iterable[str]) -> bool:
    """Whether it is not the half of a model that sees, nor Gemma, which norms its queries as well."""
    return not any("visual." in name or "vision" in name or "feedforward_layernorm" in name for name in names)


TEXT_SEARCH = Search(
    TEXT_ENCODER,
    re.compile(r"(model\.)?layers\.0\.self_attn\.q_norm\.weight"),
    (
        *(f"text_encoders.qwen3_{size}.transformer." for size in ("4b", "8b")),
        *(f"qwen3_{size}.transformer." for size in ("4b", "8b")),
        "",
    ),
    _pieces,
    _config,
    _is_alone,
)
