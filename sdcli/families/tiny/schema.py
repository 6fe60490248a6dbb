"""The settings of a tiny autoencoder's decoder: diffusers' AutoencoderTiny, whose defaults these are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sdcli.families.contract import Settings
from sdcli.families.rules import among, between, is_bool, is_layer_count, is_number, is_size, list_of, setting

LEVELS_LIMIT = 7
"""Each but the last doubles the sides of the map."""

UNSET: dict[str, object] = {"quantization_config": None}

IDLE = frozenset(
    {
        *("in_channels", "encoder_block_out_channels", "num_encoder_blocks", "block_out_channels"),
        *("latent_magnitude", "latent_shift", "force_upcast"),
    }
)
"""Keys of its encoder, and of how latents are kept in files."""


@dataclass(frozen=True)
class TinyAutoencoder(Settings):
    """A decoder of latents that was distilled from a larger one (https://github.com/madebyollin/taesd)."""

    out_channels: int = setting(3, among(3))
    decoder_block_out_channels: Sequence[int] = setting((64, 64, 64, 64), list_of(is_size, LEVELS_LIMIT))
    num_decoder_blocks: Sequence[int] = setting((3, 3, 3, 1), list_of(is_layer_count, LEVELS_LIMIT))
    act_fn: str = setting("relu", among("relu"))
    upsample_fn: str = setting("nearest", among("nearest"))
    latent_channels: int = setting(4, is_size)
    upsampling_scaling_factor: int = setting(2, among(2))
    scaling_factor: float = setting(1.0, between(1e-3, 1e3))
    shift_factor: float = setting(0.0, is_number)
    use_midblock_gn: bool = setting(False, is_bool)
    """Whether blocks of the smallest map look at all of it, as FLUX.2's do. Its author's setting, not diffusers'."""

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Its levels are of one width, and both lists have an entry for each."""
        if len(self.decoder_block_out_channels) != len(self.num_decoder_blocks):
            yield "has lists of two lengths for 'decoder_block_out_channels' and 'num_decoder_blocks'"
        if len({*self.decoder_block_out_channels}) != 1:
            yield "has 'decoder_block_out_channels' that differ"

    @property
    def latent_factor(self) -> int:
        """Pixels to a place of the latents, along each side."""
        return 2 ** (len(self.num_decoder_blocks) - 1)
