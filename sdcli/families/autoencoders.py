"""Ways of an autoencoder's halves to spend less memory, by their names, with the words that plans tell of them."""

from __future__ import annotations

KEEP, RECOMPUTE, NEVER_KEEP = "whole", "recomputed", "unkept"

AUTOENCODER_WAYS = {
    KEEP: "",
    RECOMPUTE: "the autoencoder computes some maps twice rather than keep them",
    NEVER_KEEP: "the autoencoder never keeps its largest maps, it computes them anew for each of its norms",
}
"""All of them have the same bits (blocks/bands.py)."""
