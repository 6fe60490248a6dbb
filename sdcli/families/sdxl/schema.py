"""The settings of SDXL's networks, as far as they are not Stable Diffusion's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sdcli.errors import echo
from sdcli.families.rules import (
    above,
    among,
    for_all_or_each,
    is_layer_count,
    is_size,
    or_none,
    setting,
)
from sdcli.families.sd.schema import UNET_UNSET, TextEncoder, UNet


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


UNET_XL_UNSET: dict[str, object] = {
    key: value for key, value in UNET_UNSET.items() if key not in UNetXL.__dataclass_fields__
}
"""Keys that would change the picture and are not honoured."""
