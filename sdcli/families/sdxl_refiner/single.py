"""SDXL's refiner in one file of the original layout: `conditioner.embedders.0.model.` is its only text encoder."""

from __future__ import annotations

from dataclasses import replace

from sdcli.domain import Prediction, WeightFile
from sdcli.families.contract import Found, Numbers
from sdcli.families.sdxl.single import REFINER, TEXT_2_SEARCH, UNET_SEARCH, VAE_XL_SEARCH, is_of_refiner, parts_by
from sdcli.families.sdxl_refiner.family import SIZES_AND_SCORE
from sdcli.families.single_file import Search
from sdcli.families.tiny.single import TINY_SEARCH

TEXT_SEARCH = replace(TEXT_2_SEARCH, prefixes=(REFINER,))


def parts_of(file: WeightFile, numbers: Numbers, prediction: Prediction | None) -> Found:
    """The parts that a file has; of another kind of model none but an autoencoder."""
    searches: tuple[Search, ...] = (TEXT_2_SEARCH, VAE_XL_SEARCH, TINY_SEARCH)
    if is_of_refiner(file):
        searches = (UNET_SEARCH, TEXT_SEARCH, *searches[1:])
    return parts_by(searches, SIZES_AND_SCORE, file, numbers, prediction)
