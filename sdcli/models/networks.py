"""Whether a config describes a network that can be built, known without building it: no torch, no constructor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sdcli.errors import echo

Rule = Callable[[Any], bool]

LEVELS_LIMIT = 7
"""Levels of a network: each halves the map, and the largest picture has 8192 pixels a side."""


LAYERS_LIMIT = 256
"""Transformers in a level, far more than any model of these families has."""


def is_size(value: object) -> bool:
    """Whether it is a whole number above 0."""
    return type(value) is int and value > 0


def _is_odd(value: object) -> bool:
    return type(value) is int and value > 0 and value % 2 == 1


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _list_of(rule: Rule) -> Rule:
    return lambda value: isinstance(value, list) and bool(value) and all(map(rule, value))


def _for_all_or_each(rule: Rule) -> Rule:
    return lambda value: rule(value) or _list_of(rule)(value)


def _among(*known: str | int | None) -> Rule:
    return lambda value: not isinstance(value, bool | list | float) and value in known


def _is_above_0(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_word(value: object) -> bool:
    return isinstance(value, str)


def _or_none(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


BLOCKS = {
    "unet": "CrossAttnDownBlock2D DownBlock2D AttnDownBlock2D ResnetDownsampleBlock2D "
    "CrossAttnUpBlock2D UpBlock2D AttnUpBlock2D ResnetUpsampleBlock2D",
    "vae": "DownEncoderBlock2D UpDecoderBlock2D",
}
"""Kinds of levels that are computed as diffusers computes them."""

_ACTIVATIONS = _among("silu", "swish", "mish", "gelu", "relu")
_TEXT_ACTIVATIONS = _among(
    "quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "relu", "silu", "swish", "mish"
)

_SIZES = [
    "in_channels",
    "out_channels",
    "latent_channels",
    "norm_num_groups",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
]
_FLAGS = [
    "center_input_sample",
    "flip_sin_to_cos",
    "use_linear_projection",
    "upcast_attention",
    "resnet_skip_time_act",
    "force_upcast",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
    "mid_block_only_cross_attention",
]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SIZES, is_size),
    **dict.fromkeys(_FLAGS, _is_flag),
    "sample_size": _or_none(_for_all_or_each(is_size)),
    "block_out_channels": lambda value: _list_of(is_size)(value) and len(value) <= LEVELS_LIMIT,
    "down_block_types": _list_of(_is_word),
    "up_block_types": _list_of(_is_word),
    "mid_block_type": _among("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "layers_per_block": _for_all_or_each(is_size),
    "transformer_layers_per_block": _for_all_or_each(is_size),
    "attention_head_dim": _for_all_or_each(is_size),
    "cross_attention_dim": _for_all_or_each(is_size),
    "only_cross_attention": _for_all_or_each(lambda value: isinstance(value, bool)),
    "downsample_padding": _among(0, 1),
    "conv_in_kernel": _is_odd,
    "conv_out_kernel": _is_odd,
    "act_fn": _ACTIVATIONS,
    "hidden_act": _TEXT_ACTIVATIONS,
    "time_embedding_dim": _or_none(is_size),
    "timestep_post_act": _or_none(_ACTIVATIONS),
    "resnet_time_scale_shift": _among("default", "scale_shift"),
    "time_embedding_type": _among("positional", "fourier"),
    "norm_eps": _is_above_0,
    "layer_norm_eps": _is_above_0,
    "scaling_factor": lambda value: _is_number(value) and 1e-3 <= value <= 1e3,  # of all that are known 0.08 to 3.7
    "mid_block_scale_factor": lambda value: _is_number(value) and value != 0,
    "resnet_out_scale_factor": lambda value: _is_number(value) and value != 0,
    "freq_shift": _is_number,
    "time_cond_proj_dim": _or_none(lambda value: is_size(value) and value > 3),  # sines and cosines, two of each
    "max_position_embeddings": lambda value: is_size(value) and value > 2,  # the begin and end marks, and a word
}
"""What a setting may be; those that are not here may be anything plain."""


def is_usable(key: str, value: object) -> bool:
    """Whether a setting is of the type and range that its constructor takes."""
    rule = _RULES.get(key)
    return rule is None or rule(value)


def fault_of(component: str, config: dict[str, Any]) -> str | None:
    """Why no network can be built with these settings, each of which is usable; None if one can."""
    faults = _text_faults(config) if component == "text_encoder" else _level_faults(component, config)
    return next(faults, None)


def _level_faults(component: str, config: dict[str, Any]) -> Iterator[str]:
    """Of a UNet or an autoencoder: its lists have an entry a level, and its norms come out even."""
    default = [320, 640, 1280, 1280] if component == "unet" else [64]
    widths: list[int] = config.get("block_out_channels", default)
    for key in ("down_block_types", "up_block_types"):
        kinds = config.get(key)
        if kinds is None and len(widths) != len(default):
            yield f"has {len(widths)} 'block_out_channels' and no {echo(key)}"
        for kind in kinds or ():
            if kind.removeprefix("UNetRes") not in BLOCKS[component].split():  # its beginning before diffusers 0.3
                yield f"has a block {echo(kind)}, which is not supported"
    for key, value in config.items():
        if isinstance(value, list) and key != "sample_size" and len(value) != len(widths):
            yield f"has {len(widths)} 'block_out_channels' and {len(value)} for {echo(key)}"
    layers, transformers = config.get("layers_per_block", 1), config.get("transformer_layers_per_block", 1)
    if component == "vae" and isinstance(layers, list):
        yield f"has a list for {echo('layers_per_block')}, which an autoencoder has one of"
    if _most(layers) * _most(transformers) > LAYERS_LIMIT:
        yield f"has more than {LAYERS_LIMIT} layers a level"
    groups = config.get("norm_num_groups", 32)
    for width in widths:
        if width % groups:
            yield f"has 'block_out_channels' of {width}, which {groups} 'norm_num_groups' do not divide"
    heads = config.get("attention_head_dim", 1)
    for width, count in zip(widths, heads if isinstance(heads, list) else [heads] * len(widths), strict=False):
        if count > width:
            yield f"has {count} attention heads for {width} channels"


def _most(value: int | list[int]) -> int:
    return max(value) if isinstance(value, list) else value


def _text_faults(config: dict[str, Any]) -> Iterator[str]:
    hidden, heads = config.get("hidden_size", 512), config.get("num_attention_heads", 8)
    if hidden % heads:
        yield f"has a 'hidden_size' of {hidden}, which {heads} 'num_attention_heads' do not divide"
