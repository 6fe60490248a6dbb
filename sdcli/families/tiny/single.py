"""A tiny autoencoder's decoder in a file, by diffusers' names or by those of its author (taesd_decoder.safetensors).

The author counts a clamp before the first layer, which has no weights (https://github.com/madebyollin/taesd, taesd.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sdcli.families.single_file import Names, Piece, Search
from sdcli.families.tiny.parts import TINY

HOME = "decoder.layers."

SIGN = re.compile(r"(decoder\.layers\.)?\d{1,3}\.conv\.0\.weight")
"""A name that tells that there is one."""

_ITS_OWN = re.compile(r"(?:(?:en|de)coder\.layers\.)?\d{1,3}\..+")

_ORIGINAL = re.compile(r"(\d{1,3})(\..+)")


def names_of(names: Mapping[str, object]) -> dict[str, str]:
    """From diffusers' names to the file's, of a decoder; of an encoder alone none."""
    if any(name.startswith(HOME) for name in names):
        return {name: name for name in names if name.startswith(HOME)}
    found = {name: match for name in names if (match := _ORIGINAL.fullmatch(name))}
    if any(match[1] == "0" for match in found.values()):  # which has no clamp
        return {}
    return {f"{HOME}{int(match[1]) - 1}{match[2]}": name for name, match in found.items()}


def config_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of a decoder with tensors of these shapes."""
    width, channels, *_ = shapes[f"{HOME}0.weight"]
    last = max(int(name.removeprefix(HOME).partition(".")[0]) for name in shapes)
    counts = [0]
    for layer in range(1, last + 1):
        if f"{HOME}{layer}.conv.0.weight" in shapes:
            counts[-1] += 1
        elif f"{HOME}{layer}.weight" in shapes:
            counts.append(0)
    return {
        "latent_channels": channels,
        "out_channels": shapes[f"{HOME}{last}.weight"][0],
        "decoder_block_out_channels": [width for _ in counts[:-1]],
        "num_decoder_blocks": counts[:-1],
        "use_midblock_gn": any(".pool." in name for name in shapes),
    }


def _pieces(names: Names) -> dict[str, Piece]:
    return {today: Piece(stored) for today, stored in names_of(names).items()}


def _is_alone(names: Iterable[str]) -> bool:
    return all(_ITS_OWN.fullmatch(name) for name in names)


TINY_SEARCH = Search(TINY, SIGN, ("",), _pieces, lambda shapes, names: config_of(shapes), _is_alone)
