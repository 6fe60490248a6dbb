"""Files in the layout of safetensors, of tensors that are named and shaped, and nothing more."""

from __future__ import annotations

import json
import math
from typing import Any

from sdcli.models.header import ITEM_BYTES

Shapes = dict[str, tuple[str, list[int]]]
"""Type and shape of each tensor."""


def head_of(shapes: Shapes, notes: dict[str, str] | None = None) -> tuple[bytes, int]:
    """What stands before the data, and how many bytes of data there are."""
    header: dict[str, Any] = {"__metadata__": notes} if notes else {}
    at = 0
    for name, (dtype, shape) in shapes.items():
        end = at + ITEM_BYTES[dtype] * math.prod(shape)
        header[name], at = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}, end
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw, at


def laid_out(shapes: Shapes, notes: dict[str, str] | None = None, data: bytes | None = None) -> bytes:
    """A file of zeros, or of this data."""
    head, data_bytes = head_of(shapes, notes)
    return head + (bytes(data_bytes) if data is None else data)
