"""Names of Z-Image's weights as its makers and ComfyUI have them, as diffusers' own.

Queries, keys and values are one weight there. A test compares with diffusers' converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdcli.families.single_file import Names, Piece, each_once
from sdcli.families.zimage.spellings import FUSED

_TODAY = (
    (re.compile(r"\.attention\.out(?=\.)"), ".attention.to_out.0"),
    (re.compile(r"\.attention\.([qk])_norm(?=\.)"), r".attention.norm_\1"),
    (re.compile(r"^(x_embedder|final_layer)(?=\.)"), r"all_\1.2-1"),
)
_IDLE = ("norm_final.weight",)
"""That no pass uses."""


def transformer_names(names: Names) -> dict[str, Piece]:
    """Of a denoiser: diffusers' names, and where each lies. What has these already keeps its name."""
    return each_once(pair for name in names if name not in _IDLE for pair in _pairs(name))


def _pairs(name: str) -> Iterator[tuple[str, Piece]]:
    home, fused, leaf = name.rpartition(".attention.qkv.")
    if fused:
        for index, one in enumerate(FUSED):
            yield f"{home}.attention.{one}.{leaf}", Piece(name, (index, len(FUSED)))
        return
    today = name
    for pattern, ours in _TODAY:
        today = pattern.sub(ours, today)
    yield today, Piece(name)
