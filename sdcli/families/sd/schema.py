"""The settings of Stable Diffusion's networks and tokenizer: what a config may say, and what is refused.

Defaults are those of diffusers 0.42 (UNet2DConditionModel, AutoencoderKL) and transformers 5 (CLIPTextConfig), as a
test compares.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sdcli.errors import echo
from sdcli.families.contract import Settings
from sdcli.families.rules import (
    above,
    among,
    between,
    for_all_or_each,
    is_above_0,
    is_bool,
    is_flag,
    is_layer_count,
    is_not_0,
    is_number,
    is_odd,
    is_size,
    is_word,
    list_of,
    or_none,
    setting,
)

LEVELS_LIMIT = 7
"""Levels of a network: each halves the map, and the largest picture has 8192 pixels a side."""

LAYERS_LIMIT = 256
"""Transformers in a level, far more than any model of this family has."""

_UNET_BLOCKS = frozenset(
    {
        "CrossAttnDownBlock2D",
        "DownBlock2D",
        "AttnDownBlock2D",
        "ResnetDownsampleBlock2D",
        "CrossAttnUpBlock2D",
        "UpBlock2D",
        "AttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    }
)
_VAE_BLOCKS = frozenset({"DownEncoderBlock2D", "UpDecoderBlock2D"})
"""Kinds of levels that are computed as diffusers computes them."""

_activation = among("silu", "swish", "mish", "gelu", "relu")
_text_activation = among(
    "quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "relu", "silu", "swish", "mish"
)
_widths = list_of(is_size, LEVELS_LIMIT)
_side = or_none(for_all_or_each(is_size))


@dataclass(frozen=True)
class _Levels(Settings, ABC):
    """Of a network of levels, each of which halves its map or doubles it."""

    down_block_types: Sequence[str] = ()
    up_block_types: Sequence[str] = ()
    block_out_channels: Sequence[int] = ()
    layers_per_block: int | Sequence[int] = 1
    norm_num_groups: int = 32

    not_by_level: ClassVar[frozenset[str]] = frozenset({"sample_size"})
    """Keys whose lists have other entries."""

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Its lists have an entry a level, and its norms come out even."""
        levels = len(self.block_out_channels)
        for key in ("down_block_types", "up_block_types"):
            kinds = getattr(self, key)
            if key not in given and len(kinds) != levels:
                yield f"has {levels} 'block_out_channels' and no {echo(key)}"
            for kind in kinds:
                if kind.removeprefix("UNetRes") not in self.known_blocks():  # its beginning before diffusers 0.3
                    yield f"has a block {echo(kind)}, which is not supported"
        for key in given:
            value = getattr(self, key)
            if isinstance(value, list) and key not in self.not_by_level and len(value) != levels:
                yield f"has {levels} 'block_out_channels' and {len(value)} for {echo(key)}"
        yield from self.faults_of_layers()
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                yield (
                    f"has 'block_out_channels' of {width}, which {self.norm_num_groups} 'norm_num_groups' do not divide"
                )

    @abstractmethod
    def known_blocks(self) -> frozenset[str]:
        """Kinds of levels that it may have."""

    @abstractmethod
    def faults_of_layers(self) -> Iterator[str]:
        """Of what its levels are made of."""


@dataclass(frozen=True)
class UNet(_Levels):
    """The denoiser: diffusers' UNet2DConditionModel."""

    sample_size: int | Sequence[int] | None = setting(None, _side)
    in_channels: int = setting(4, is_size)
    out_channels: int = setting(4, is_size)
    center_input_sample: bool | None = setting(False, is_flag)
    flip_sin_to_cos: bool | None = setting(True, is_flag)
    freq_shift: float = setting(0, is_number)
    down_block_types: Sequence[str] = setting(("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), list_of(is_word))
    mid_block_type: str | None = setting(
        "UNetMidBlock2DCrossAttn", among("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
    )
    up_block_types: Sequence[str] = setting(("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, list_of(is_word))
    only_cross_attention: bool | Sequence[bool] = setting(False, for_all_or_each(is_bool))
    block_out_channels: Sequence[int] = setting((320, 640, 1280, 1280), _widths)
    layers_per_block: int | Sequence[int] = setting(2, for_all_or_each(is_layer_count))
    downsample_padding: int = setting(1, among(0, 1))
    mid_block_scale_factor: float = setting(1, is_not_0)
    act_fn: str = setting("silu", _activation)
    norm_num_groups: int = setting(32, is_size)
    norm_eps: float = setting(1e-5, is_above_0)
    cross_attention_dim: int | Sequence[int] = setting(1280, for_all_or_each(is_size))
    transformer_layers_per_block: int | Sequence[int] = setting(1, for_all_or_each(is_layer_count))
    attention_head_dim: int | Sequence[int] = setting(8, for_all_or_each(is_size))
    use_linear_projection: bool | None = setting(False, is_flag)
    upcast_attention: bool | None = setting(False, is_flag)
    resnet_time_scale_shift: str = setting("default", among("default", "scale_shift"))
    resnet_skip_time_act: bool | None = setting(False, is_flag)
    resnet_out_scale_factor: float = setting(1.0, is_not_0)
    time_embedding_type: str = setting("positional", among("positional", "fourier"))
    time_embedding_dim: int | None = setting(None, or_none(is_size))
    timestep_post_act: str | None = setting(None, or_none(_activation))
    time_cond_proj_dim: int | None = setting(None, or_none(above(3)))  # sines and cosines, two of each
    conv_in_kernel: int = setting(3, is_odd)
    conv_out_kernel: int = setting(3, is_odd)
    mid_block_only_cross_attention: bool | None = setting(None, is_flag)

    def known_blocks(self) -> frozenset[str]:
        """Kinds of levels that it may have."""
        return _UNET_BLOCKS

    def faults_of_layers(self) -> Iterator[str]:
        """So many that they are somebody's joke."""
        if _most(self.layers_per_block) * _most(self.transformer_layers_per_block) > LAYERS_LIMIT:
            yield f"has more than {LAYERS_LIMIT} layers a level"

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Those of levels, and more heads than channels."""
        yield from _Levels.faults(self, given)
        heads = self.attention_head_dim if "attention_head_dim" in given else 1
        each = [heads] * len(self.block_out_channels) if isinstance(heads, int) else heads
        for width, count in zip(self.block_out_channels, each, strict=False):
            if count > width:
                yield f"has {count} attention heads for {width} channels"


@dataclass(frozen=True)
class Autoencoder(_Levels):
    """The autoencoder: diffusers' AutoencoderKL."""

    in_channels: int = setting(3, is_size)
    out_channels: int = setting(3, is_size)
    down_block_types: Sequence[str] = setting(("DownEncoderBlock2D",), list_of(is_word))
    up_block_types: Sequence[str] = setting(("UpDecoderBlock2D",), list_of(is_word))
    block_out_channels: Sequence[int] = setting((64,), _widths)
    layers_per_block: int | Sequence[int] = setting(1, for_all_or_each(is_layer_count))
    act_fn: str = setting("silu", _activation)
    latent_channels: int = setting(4, is_size)
    norm_num_groups: int = setting(32, is_size)
    sample_size: int | Sequence[int] | None = setting(32, _side)
    scaling_factor: float = setting(0.18215, between(1e-3, 1e3))  # of all that are known 0.08 to 3.7
    force_upcast: bool | None = setting(True, is_flag)
    use_quant_conv: bool | None = setting(True, is_flag)
    use_post_quant_conv: bool | None = setting(True, is_flag)
    mid_block_add_attention: bool | None = setting(True, is_flag)

    def known_blocks(self) -> frozenset[str]:
        """Kinds of levels that it may have."""
        return _VAE_BLOCKS

    @property
    def statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Mean and deviation of each channel's latents, where the denoiser knows them without."""
        return None

    def faults_of_layers(self) -> Iterator[str]:
        """All its levels have the same number of layers."""
        if isinstance(self.layers_per_block, list):
            yield f"has a list for {echo('layers_per_block')}, which an autoencoder has one of"


@dataclass(frozen=True)
class TextEncoder(Settings):
    """The text encoder: CLIP's, as transformers' CLIPTextConfig has it."""

    vocab_size: int = setting(49408, is_size)
    hidden_size: int = setting(512, is_size)
    intermediate_size: int = setting(2048, is_size)
    num_hidden_layers: int = setting(12, is_layer_count)
    num_attention_heads: int = setting(8, is_size)
    max_position_embeddings: int = setting(77, above(2))  # the begin and end marks, and a word
    hidden_act: str = setting("quick_gelu", _text_activation)
    layer_norm_eps: float = setting(1e-5, is_above_0)

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Its width is of as many parts as it has heads."""
        if self.hidden_size % self.num_attention_heads:
            yield (
                f"has a 'hidden_size' of {self.hidden_size}, which {self.num_attention_heads} 'num_attention_heads'"
                " do not divide"
            )


@dataclass(frozen=True)
class Tokenizer(Settings):
    """The tokenizer: CLIP's. Its settings are words, tables and numbers of any kind, which the library reads."""

    bos_token: object = None
    eos_token: object = None
    unk_token: object = None
    sep_token: object = None
    pad_token: object = None
    cls_token: object = None
    mask_token: object = None
    added_tokens_decoder: object = None
    additional_special_tokens: object = None
    extra_special_tokens: object = None
    split_special_tokens: object = None
    model_max_length: object = None
    padding_side: object = None


def _words(text: str) -> list[str]:
    return text.split()


UNET_UNSET: dict[str, object] = {
    **dict.fromkeys(
        _words(
            "encoder_hid_dim encoder_hid_dim_type class_embed_type addition_embed_type addition_time_embed_dim "
            "num_class_embeds time_embedding_act_fn projection_class_embeddings_input_dim class_embeddings_concat "
            "cross_attention_norm num_attention_heads reverse_transformer_layers_per_block dual_cross_attention "
            "quantization_config"
        )
    ),
    "addition_embed_type_num_heads": 64,
    "attention_type": "default",
}
VAE_UNSET: dict[str, object] = dict.fromkeys(("shift_factor", "latents_mean", "latents_std", "quantization_config"))
TEXT_UNSET: dict[str, object] = {"use_attention_mask": None, "is_causal": True, "quantization_config": None}
TOKENIZER_UNSET: dict[str, object] = dict.fromkeys(("fast_tokenizer_files", "gguf_file"))
"""Keys that would change the picture and are not honoured, with what they are while they are unset (Part.unset)."""

IDLE = frozenset(
    _words(
        # of use in training only, or for what is not asked for: pooled and projected words, words from tokens
        "dropout attention_dropout initializer_range initializer_factor projection_dim bos_token_id eos_token_id "
        "pad_token_id return_dict tie_word_embeddings tokenizer_class tokenizer_file special_tokens_map_file is_local "
        "local_files_only backend do_lower_case errors add_prefix_space add_bos_token add_eos_token "
        "clean_up_tokenization_spaces processor_class use_fast"
    )
)
"""Keys that the libraries write and that have no say in a picture."""

OLD_SIDE = 64
"""Latents along a side of every model that a diffusers before 0.9 wrote."""


def corrected_unet(config: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """The settings as diffusers takes them: before 0.9 it wrote `sample_size` wrongly, as it knows now
    (StableDiffusionPipeline.__init__)."""
    version = re.match(r"(\d{1,9})\.(\d{1,9})", str(table.get("_diffusers_version")))
    is_old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    side = config.get("sample_size")
    return config | {"sample_size": OLD_SIDE} if is_old and type(side) is int and side < OLD_SIDE else config


def _most(value: int | Sequence[Any]) -> int:
    return value if isinstance(value, int) else max(map(_most, value))
