"""Names of the UNet's modules in the original code (https://github.com/CompVis/latent-diffusion), and diffusers' own.

There the blocks of the way down and of the way up have running numbers, and so have the layers in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sdcli.families.sd.schema import UNet

_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_OF_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OF_DOWNSAMPLER = {"op": "conv"}


def original_blocks(unet: UNet) -> dict[str, str]:
    """The blocks of a UNet with these settings."""
    levels = len(unet.block_out_channels)
    layers = [unet.layers_per_block] * levels if isinstance(unet.layers_per_block, int) else [*unet.layers_per_block]
    down, up = (["Attn" in kind for kind in kinds] for kinds in (unet.down_block_types, unet.up_block_types))
    return numbered_blocks(layers, down, up)


def numbered_blocks(layers: Sequence[int], down: Sequence[bool], up: Sequence[bool]) -> dict[str, str]:
    """From the original name of each residual block, transformer and change of size to diffusers'.

    `input_blocks.4.1` is `down_blocks.1.attentions.0` in Stable Diffusion 1.x. Each level has so many layers on the way
    down, and has transformers on the way down and on the way up or not.
    """
    levels, blocks, at = len(layers), dict[str, str](), 1
    for level, (attends, count) in enumerate(zip(down, layers, strict=True)):
        for layer in range(count):
            blocks |= _layer(f"input_blocks.{at}", f"down_blocks.{level}", layer, attends)
            at += 1
        if level < levels - 1:
            blocks[f"input_blocks.{at}.0"] = f"down_blocks.{level}.downsamplers.0"
            at += 1
    blocks |= {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0"}
    blocks["middle_block.2"] = "mid_block.resnets.1"
    at = 0
    for level, (attends, count) in enumerate(zip(up, reversed(layers), strict=True)):
        for layer in range(count + 1):
            some = _layer(f"output_blocks.{at}", f"up_blocks.{level}", layer, attends)
            if layer == count and level < levels - 1:
                some[f"output_blocks.{at}.{len(some)}"] = f"up_blocks.{level}.upsamplers.0"
            blocks |= some
            at += 1
    return blocks


def _layer(original: str, ours: str, layer: int, attends: bool) -> dict[str, str]:
    """A residual block, and the transformer after it where its level has such."""
    pair = {f"{original}.0": f"{ours}.resnets.{layer}"}
    return pair | ({f"{original}.1": f"{ours}.attentions.{layer}"} if attends else {})


def diffusers_name(blocks: Mapping[str, str], original: str) -> str | None:
    """diffusers' name of one of the original's modules; None for one that is not of these blocks."""
    if original in _ENDS:
        return _ENDS[original]
    block, inner = _split(original, {"middle_block": 2}, 3)
    ours = blocks.get(block)
    return None if ours is None else ".".join(filter(None, (ours, _inner(ours).get(inner, inner))))


def original_name(blocks: Mapping[str, str], ours: str) -> str | None:
    """The other way round, with `blocks` turned round as well."""
    ends = {new: old for old, new in _ENDS.items()}
    if ours in ends:
        return ends[ours]
    block, inner = _split(ours, {"mid_block": 3}, 4)
    theirs = blocks.get(block)
    turned = {new: old for old, new in _inner(block).items()}
    return None if theirs is None else ".".join(filter(None, (theirs, turned.get(inner, inner))))


def _split(name: str, lengths: Mapping[str, int], otherwise: int) -> tuple[str, str]:
    """The block's name and that within the block."""
    words: Sequence[str] = name.split(".")
    length = lengths.get(words[0], otherwise)
    return ".".join(words[:length]), ".".join(words[length:])


def _inner(block: str) -> Mapping[str, str]:
    return _OF_RESIDUAL if ".resnets." in block else _OF_DOWNSAMPLER if ".downsamplers." in block else {}
