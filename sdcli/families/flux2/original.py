"""Names of FLUX.2's weights as Black Forest Labs published them (https://github.com/black-forest-labs/flux2), and
diffusers' own. A test compares with diffusers' converter.

Queries, keys and values of the blocks that keep words and picture apart are one weight there, and the last norm's shift
comes before its scale.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdcli.families.sd.original import vae_names
from sdcli.families.single_file import Names, Piece, each_once

MODULES = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SWAPPED = "norm_out.linear"
"""Whose two halves lie the other way round."""

DOUBLE, SINGLE = ("double_blocks", "transformer_blocks"), ("single_blocks", "single_transformer_blocks")
"""The original's name of the blocks, and diffusers'."""

OF_DOUBLE = {
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
OF_SINGLE = {
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}
FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
"""Modules that are one after another in one of the original's."""


def transformer_names(names: Names) -> dict[str, Piece]:
    """Of a denoiser: diffusers' names, and where each lies. What has these already keeps its name."""
    return each_once(pair for name in names for pair in _pairs(name))


def _pairs(name: str) -> Iterator[tuple[str, Piece]]:
    module, _, leaf = name.rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    block = re.fullmatch(r"(double|single)_blocks\.(\d{1,3})\.(.+)", module)
    if block is None:
        today = MODULES.get(module)
        yield (name, Piece(name)) if today is None else (f"{today}.{leaf}", Piece(name, swapped=today == SWAPPED))
        return
    kind, number, inner = block.groups()
    home = f"{(DOUBLE if kind == 'double' else SINGLE)[1]}.{number}"
    if kind == "double" and inner in FUSED:
        for index, one in enumerate(FUSED[inner]):
            yield f"{home}.{one}.{leaf}", Piece(name, (index, len(FUSED[inner])))
    else:
        today = (OF_DOUBLE if kind == "double" else OF_SINGLE).get(inner)
        yield (name if today is None else f"{home}.{today}.{leaf}"), Piece(name)


def autoencoder_names(names: Names) -> dict[str, Piece]:
    """The same of an autoencoder, whose last and first convolutions belong to its halves there."""
    moved = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}

    def today(name: str) -> str:
        old = next((old for old in moved if name.startswith(old)), None)
        return name if old is None else moved[old] + name.removeprefix(old)

    return each_once((today(name), piece) for name, piece in vae_names(names).items())
