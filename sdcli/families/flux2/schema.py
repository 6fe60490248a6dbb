"""The settings of FLUX.2's denoiser and autoencoder: what a config may say, and what is refused.

Defaults are those of diffusers 0.42 (Flux2Transformer2DModel, AutoencoderKLFlux2), as a test compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sdcli.errors import echo
from sdcli.families.contract import Settings
from sdcli.families.rules import (
    among,
    is_above_0,
    is_bool,
    is_flag,
    is_layer_count,
    is_number,
    is_size,
    is_word,
    list_of,
    or_none,
    setting,
)

AXES = 4
"""Of a token's place: which picture, its row and its column, and of a word which one it is."""

LEVELS = 4
"""Of the autoencoder: each but the last halves the sides."""

_PATCHES = (2, 2)


@dataclass(frozen=True)
class Transformer(Settings):
    """The denoiser: diffusers' Flux2Transformer2DModel."""

    patch_size: int = setting(1, among(1))
    in_channels: int = setting(128, is_size)
    out_channels: int | None = setting(None, or_none(is_size))
    num_layers: int = setting(8, is_layer_count)
    num_single_layers: int = setting(48, is_layer_count)
    attention_head_dim: int = setting(128, is_size)
    num_attention_heads: int = setting(48, is_size)
    joint_attention_dim: int = setting(15360, is_size)
    timestep_guidance_channels: int = setting(256, is_size)
    mlp_ratio: float = setting(3.0, is_above_0)
    axes_dims_rope: Sequence[int] = setting((32, 32, 32, 32), list_of(is_size, AXES))
    rope_theta: int = setting(2000, is_above_0)
    eps: float = setting(1e-6, is_above_0)
    guidance_embeds: bool = setting(True, is_bool)

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Its places fill a head, and the guidance is not its input."""
        if len(self.axes_dims_rope) != AXES or sum(self.axes_dims_rope) != self.attention_head_dim:
            yield (
                f"has 'axes_dims_rope' of {'+'.join(map(str, self.axes_dims_rope))}, which are not the"
                f" {self.attention_head_dim} of 'attention_head_dim'"
            )
        elif any(size % 2 for size in self.axes_dims_rope):
            yield "has an odd number among its 'axes_dims_rope', and they go in pairs"
        if self.guidance_embeds:
            yield "takes the guidance as an input ('guidance_embeds'), as FLUX.2 [dev] does, which is not supported yet"
        if self.out_channels not in (None, self.in_channels):
            yield f"has {self.out_channels} 'out_channels' for {self.in_channels} 'in_channels'"


@dataclass(frozen=True)
class Autoencoder(Settings):
    """The autoencoder: diffusers' AutoencoderKLFlux2."""

    in_channels: int = setting(3, among(3))
    out_channels: int = setting(3, among(3))
    down_block_types: Sequence[str] = setting(("DownEncoderBlock2D",) * LEVELS, list_of(is_word, LEVELS))
    up_block_types: Sequence[str] = setting(("UpDecoderBlock2D",) * LEVELS, list_of(is_word, LEVELS))
    block_out_channels: Sequence[int] = setting((128, 256, 512, 512), list_of(is_size, LEVELS))
    decoder_block_out_channels: Sequence[int] | None = setting(None, or_none(list_of(is_size, LEVELS)))
    layers_per_block: int = setting(2, is_layer_count)
    act_fn: str = setting("silu", among("silu", "swish", "mish", "gelu", "relu"))
    latent_channels: int = setting(32, is_size)
    norm_num_groups: int = setting(32, is_size)
    sample_size: int = setting(1024, is_size)
    use_quant_conv: bool | None = setting(True, is_flag)
    use_post_quant_conv: bool | None = setting(True, is_flag)
    mid_block_add_attention: bool | None = setting(True, is_flag)
    batch_norm_eps: float = setting(1e-4, is_above_0)
    batch_norm_momentum: float = setting(0.1, is_number)
    patch_size: Sequence[int] = setting(_PATCHES, list_of(is_size, 2))

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """It has four levels of the known kinds, norms that come out even, and patches of 2 x 2."""
        kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        for key, known in kinds.items():
            for kind in getattr(self, key):
                if kind != known:
                    yield f"has a block {echo(kind)}, which is not supported"
        widths = {"block_out_channels": self.block_out_channels}
        if self.decoder_block_out_channels is not None:
            widths["decoder_block_out_channels"] = self.decoder_block_out_channels
        for key, every in [*widths.items(), *((key, getattr(self, key)) for key in kinds)]:
            if len(every) != LEVELS:
                yield f"has {len(every)} levels in {echo(key)}: it takes {LEVELS}"
        for key, every in widths.items():
            for width in every:
                if width % self.norm_num_groups:
                    yield f"has {echo(key)} of {width}, which {self.norm_num_groups} 'norm_num_groups' do not divide"
        if tuple(self.patch_size) != _PATCHES:
            yield "has a 'patch_size' that is not 2 x 2"


TRANSFORMER_UNSET: dict[str, object] = dict.fromkeys(("quantization_config",))
AUTOENCODER_UNSET: dict[str, object] = dict.fromkeys(("quantization_config", "scaling_factor", "shift_factor"))
"""Keys that would change the picture and are not honoured (Part.unset)."""

IDLE = frozenset({"force_upcast"})
"""Keys that have no say in a picture."""
