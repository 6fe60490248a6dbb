"""The settings of Z-Image's denoiser and autoencoder: what a config may say, and what is refused.

Defaults are those of diffusers 0.42 (ZImageTransformer2DModel, AutoencoderKL), as a test compares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sdcli.families.contract import Settings
from sdcli.families.rules import among, is_above_0, is_layer_count, is_number, is_size, list_of, or_none, setting
from sdcli.families.sd.schema import VAE_UNSET
from sdcli.families.sd.schema import Autoencoder as KlAutoencoder

PATCH = 2
"""Latents that a token of the denoiser has, along each side."""

AXES = 3
"""Of a token's place: which word or picture, its row and its column."""


@dataclass(frozen=True)
class Transformer(Settings):
    """The denoiser: diffusers' ZImageTransformer2DModel."""

    all_patch_size: Sequence[int] = setting((PATCH,), list_of(among(PATCH), 1))
    all_f_patch_size: Sequence[int] = setting((1,), list_of(among(1), 1))
    in_channels: int = setting(16, is_size)
    dim: int = setting(3840, is_size)
    n_layers: int = setting(30, is_layer_count)
    n_refiner_layers: int = setting(2, is_layer_count)
    n_heads: int = setting(30, is_size)
    n_kv_heads: int = setting(30, is_size)
    norm_eps: float = setting(1e-5, is_above_0)
    qk_norm: bool = setting(True, lambda value: value is True)
    cap_feat_dim: int = setting(2560, is_size)
    rope_theta: float = setting(256.0, is_above_0)
    t_scale: float = setting(1000.0, is_above_0)
    axes_dims: Sequence[int] = setting((32, 48, 48), list_of(is_size, AXES))
    axes_lens: Sequence[int] = setting((1024, 512, 512), list_of(is_size, AXES))

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Its heads come out even, each with a key of its own, and places fill a head."""
        if self.dim % self.n_heads:
            yield f"has a 'dim' of {self.dim}, which {self.n_heads} 'n_heads' do not divide"
        elif len(self.axes_dims) != AXES or sum(self.axes_dims) * self.n_heads != self.dim:
            yield (
                f"has 'axes_dims' of {'+'.join(map(str, self.axes_dims))}, which are not the"
                f" {self.dim // self.n_heads} of a head"
            )
        elif any(size % 2 for size in self.axes_dims):
            yield "has an odd number among its 'axes_dims', and they go in pairs"
        if len(self.axes_lens) != AXES:
            yield f"has {len(self.axes_lens)} 'axes_lens' for {AXES} axes"
        if self.n_kv_heads != self.n_heads:
            yield f"has {self.n_kv_heads} 'n_kv_heads' for {self.n_heads} 'n_heads'"


@dataclass(frozen=True)
class Autoencoder(KlAutoencoder):
    """The autoencoder: FLUX.1's, whose latents are moved as well as scaled."""

    shift_factor: float | None = setting(None, or_none(is_number))


TRANSFORMER_UNSET: dict[str, object] = dict.fromkeys(("quantization_config", "siglip_feat_dim"))
AUTOENCODER_UNSET: dict[str, object] = {key: value for key, value in VAE_UNSET.items() if key != "shift_factor"}
"""Keys that would change the picture and are not honoured (Part.unset)."""

IDLE = frozenset({"force_upcast"})
"""Keys that have no say in a picture."""
