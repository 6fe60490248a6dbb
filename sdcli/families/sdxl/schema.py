"""The settings of SDXL's networks, as far as they are not Stable Diffusion's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sdcli.errors import echo
from sdcli.families.rules import (
    above,
    among,
    between,
    for_all_or_each,
    is_layer_count,
    is_size,
    list_of,
    or_none,
    setting,
)
from sdcli.families.sd.schema import UNET_UNSET, VAE_UNSET, Autoencoder, TextEncoder, UNet


def _is_depth(value: object) -> bool:
    """Of a level, which may have no transformers."""
    return is_layer_count(value) or (type(value) is int and value == 0)


_depth = for_all_or_each(for_all_or_each(_is_depth))


@dataclass(frozen=True)
class UNetXL(UNet):
    """The denoiser, told besides of the whole prompt and of the picture's size.

    A depth of transformers is one for all, one a level, or one a layer: SSD-1B's differ on the way up.
    """

    transformer_layers_per_block: int | Sequence[int | Sequence[int]] = setting(1, _depth)  # type: ignore[assignment]  # UNet has none a layer
    reverse_transformer_layers_per_block: Sequence[int | Sequence[int]] | None = setting(None, or_none(_depth))
    addition_embed_type: str | None = setting(None, among("text_time"))
    addition_time_embed_dim: int | None = setting(None, or_none(above(3)))  # sines and cosines, two of each
    projection_class_embeddings_input_dim: int | None = setting(None, or_none(is_size))

    def faults(self, given: Collection[str]) -> Iterator[str]:
        """Those of any denoiser, and where it is not told of the size."""
        yield from UNet.faults(self, given)
        if given and (self.addition_embed_type is None or self.addition_time_embed_dim is None):
            yield f"has no {echo('addition_time_embed_dim')} with an 'addition_embed_type' of \"text_time\""


@dataclass(frozen=True)
class ProjectedTextEncoder(TextEncoder):
    """The second text encoder, which gives besides its words one vector of all of them."""

    projection_dim: int = setting(512, is_size)


@dataclass(frozen=True)
class AutoencoderXL(Autoencoder):
    """The autoencoder, whose latents may be known to the denoiser by their deviation from a mean: Playground's."""

    latents_mean: Sequence[float] | None = setting(None, or_none(list_of(between(-1e3, 1e3))))
    latents_std: Sequence[float] | None = setting(None, or_none(list_of(between(1e-3, 1e3))))

    not_by_level: ClassVar[frozenset[str]] = Autoencoder.not_by_level | {"latents_mean", "latents_std"}

    @property
    def statistics(self) -> tuple[Sequence[float], Sequence[float]] | None:
        """Both, or none: diffusers' pipeline takes neither alone."""
        return None if self.latents_mean is None or self.latents_std is None else (self.latents_mean, self.latents_std)

    def faults_of_layers(self) -> Iterator[str]:
        """Besides, there is a mean and a deviation for each channel."""
        yield from Autoencoder.faults_of_layers(self)
        if any(len(some) != self.latent_channels for some in self.statistics or ()):
            yield f"has {self.latent_channels} 'latent_channels', and not as many 'latents_mean' and 'latents_std'"


VAE_XL_UNSET: dict[str, object] = {
    key: value for key, value in VAE_UNSET.items() if key not in AutoencoderXL.__dataclass_fields__
}
UNET_XL_UNSET: dict[str, object] = {
    key: value for key, value in UNET_UNSET.items() if key not in UNetXL.__dataclass_fields__
}
"""Keys that would change the picture and are not honoured."""
