"""Textual inversion for SDXL: a word with vectors for each of its text encoders (Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

from sdcli.domain import Component, WeightFile, Word
from sdcli.errors import SdcliError, echo
from sdcli.families.sd.embeddings import words_by

KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""The tensor of each text encoder's vectors."""


def words_of(file: WeightFile, parts: Mapping[str, Component]) -> dict[str, tuple[Word, ...]]:
    """The word that a file brings to the encoders. Raises SdcliError for a file that brings none."""
    if set(file.tensors) != set(KEYS.values()):
        raise SdcliError(
            f"{echo(file.path)} is no embedding for Stable Diffusion XL, which has the tensors clip_l and clip_g:"
            " give one for this model"
        )
    words = {
        part: words_by(file, key, {file.path.stem}, parts[part].settings.hidden_size)
        for part, key in KEYS.items()
        if part in parts  # the refiner has the second
    }
    if len({word.vectors for each in words.values() for word in each}) != 1:
        raise SdcliError(f"{echo(file.path)} has more vectors for one text encoder than for the other: fetch it again")
    return words
