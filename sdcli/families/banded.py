"""An autoencoder's halves computed band by band (blocks/bands.py), by the ways that plans name."""

from __future__ import annotations

from sdcli.blocks.bands import Bands
from sdcli.families.autoencoders import KEEP, NEVER_KEEP
from sdcli.weights.borrow import Borrow


def bands_of(borrow: Borrow) -> Bands:
    """The arithmetic of a stage that goes its way; without one it keeps all maps."""
    return Bands(borrow, keep_maps=borrow.way in ("", KEEP), never_keep=borrow.way == NEVER_KEEP)
