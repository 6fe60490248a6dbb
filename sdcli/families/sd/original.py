"""Names of Stable Diffusion's weights in the original layout, as CompVis and Stability AI published it, as today's.

One file has all networks, each under a prefix: `model.diffusion_model.`, `cond_stage_model.`, `first_stage_model.`.
Blocks are numbered through there, and the autoencoder's way up is counted from the end; OpenCLIP's text encoder has
queries, keys and values in one weight (https://github.com/Stability-AI/stablediffusion,
https://github.com/mlfoundations/open_clip). A test compares with diffusers' own converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate

from sdcli.families.sd.ldm_names import diffusers_name, numbered_blocks
from sdcli.families.single_file import Names, Piece, each_once


def _each(pairs: Iterable[tuple[str, str]]) -> dict[str, Piece]:
    """Where each weight lies, from pairs of today's name and that in the file. Raises Twice for one that has two."""
    return each_once((today, Piece(stored)) for today, stored in pairs)


def unet_names(names: Names) -> dict[str, Piece]:
    """Of a UNet: today's names, and where each lies. What no UNet has keeps its name."""
    blocks = _blocks(names)

    def today(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        found = diffusers_name(blocks, module)
        return name if found is None else f"{found}.{leaf}"

    return _each((today(name), name) for name in names)


def _blocks(names: Names) -> dict[str, str]:
    """The UNet's blocks by their original names, told from where maps change their size and where attention is."""
    modules = {".".join(name.split(".")[:3]) for name in names}
    changes = sorted({int(f[1]) for name in names if (f := re.match(r"input_blocks\.(\d{1,3})\.0\.op\.", name))})
    last = max((int(f[1]) for name in names if (f := re.match(r"input_blocks\.(\d{1,3})\.", name))), default=0)
    ends = [*changes, last + 1]
    layers = [end - begin - 1 for begin, end in zip([0, *changes], ends, strict=True)]
    down = [f"input_blocks.{end - 1}.1" in modules for end in ends]
    ups = accumulate(count + 1 for count in reversed(layers))
    up = [any(n.startswith(f"output_blocks.{end - 1}.1.proj_in.") for n in names) for end in ups]
    return numbered_blocks(layers, down, up)


_DOTLESS = re.compile(
    r"(?P<home>input_blocks|output_blocks)(?P<number>\d+)(?P<index>\d)|middle_block(?P<middle>\d)|time_embed(?P<time>\d)"
    r"|^out(?P<out>\d)"
)
_DOTLESS_INNER = (
    (re.compile(r"(in_layers|emb_layers|out_layers|transformer_blocks)(\d+)"), r"\1.\2."),
    (re.compile(r"(attn[12]|skip_connection|proj_in|proj_out|(?<=\.)op|(?<=\.)conv)(?=[a-z])"), r"\1."),
    (re.compile(r"(to_[qkv])(?=[a-z])"), r"\1."),
    (re.compile(r"to_out0"), "to_out.0."),
    (re.compile(r"ffnet0proj"), "ff.net.0.proj."),
    (re.compile(r"ffnet2"), "ff.net.2."),
    (re.compile(r"(?<=\.)norm(\d?)(?=[a-z])"), r"norm\1."),
)


def with_dots(name: str) -> str:
    """The name of a UNet's weight, from the one that an exponential moving average keeps it under: without any dot."""
    name = _DOTLESS.sub(lambda found: "".join(_dotted(found)), name)
    for pattern, dotted in _DOTLESS_INNER:
        name = pattern.sub(dotted, name)
    return name


def _dotted(found: re.Match[str]) -> Iterator[str]:
    if found["home"]:
        yield f"{found['home']}.{found['number']}.{found['index']}."
    for key, home in (("middle", "middle_block"), ("time", "time_embed"), ("out", "out")):
        if found[key]:
            yield f"{home}.{found[key]}."


_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def vae_names(names: Names) -> dict[str, Piece]:
    """The same of an autoencoder, whose way up is counted from the largest map."""
    ways = (re.match(r"decoder\.up\.(\d{1,3})\.", name) for name in names)
    levels = 1 + max((int(way[1]) for way in ways if way), default=0)
    return _each((_vae_name(name, levels), name) for name in names)


def _vae_name(name: str, levels: int) -> str:
    match name.split("."):
        case [side, ("down" | "up") as way, level, "block", layer, *rest] if re.fullmatch(r"[0-9]{1,3}", level):
            return ".".join([side, f"{way}_blocks", _level(way, level, levels), "resnets", layer, *_shortcut(rest)])
        case [side, ("down" | "up") as way, level, ("downsample" | "upsample") as change, *rest] if re.fullmatch(
            r"[0-9]{1,3}", level
        ):
            return ".".join([side, f"{way}_blocks", _level(way, level, levels), f"{change}rs.0", *rest])
        case [side, "mid", ("block_1" | "block_2") as block, *rest]:
            return ".".join([side, "mid_block", "resnets", "0" if block == "block_1" else "1", *_shortcut(rest)])
        case [side, "mid", "attn_1", layer, *rest]:
            return ".".join([side, "mid_block", "attentions", "0", _VAE_ATTENTION.get(layer, layer), *rest])
        case [("encoder" | "decoder") as side, "norm_out", *rest]:
            return ".".join([side, "conv_norm_out", *rest])
    return name


def _level(way: str, level: str, levels: int) -> str:
    return level if way == "down" else str(levels - 1 - int(level))


def _shortcut(rest: list[str]) -> list[str]:
    return ["conv_shortcut", *rest[1:]] if rest[:1] == ["nin_shortcut"] else rest


_OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def open_clip_names(names: Names, layers: int) -> dict[str, Piece]:
    """The same of the first layers of OpenCLIP's text encoder."""
    pieces = {today: Piece(name) for name, today in _OPEN_CLIP.items() if name in names}
    for name in names:
        found = re.fullmatch(r"transformer\.resblocks\.(\d{1,3})\.(.+?)(?:\.|_)(weight|bias)", name)
        if found is None or int(found[1]) >= layers:
            continue
        home, inner, leaf = f"encoder.layers.{found[1]}", found[2], found[3]
        if inner == "attn.in_proj":
            pieces |= {f"{home}.self_attn.{one}_proj.{leaf}": Piece(name, (i, 3)) for i, one in enumerate("qkv")}
        else:
            pieces[f"{home}.{_OPEN_CLIP_LAYER.get(inner, inner)}.{leaf}"] = Piece(name)
    return pieces


def clip_names(names: Names) -> dict[str, Piece]:
    """The same of CLIP's text encoder, which has today's names already, below one more."""
    return _each((name.removeprefix("text_model."), name) for name in names)
