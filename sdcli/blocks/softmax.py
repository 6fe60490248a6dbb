"""Softmax by the CPU library's own kernel, which takes half the time of torch's in BF16, or a quarter."""

from __future__ import annotations

import functools
import math

import torch

from sdcli.weights.opaque import raw_bytes, seen_as_packed
from sdcli.weights.packed import can_map, multiplies

MULTIPLE = 16
"""Numbers that the kernel takes at a time: a row of three less than a multiple takes three times as long."""


def goes_by_library(scores: torch.Tensor) -> bool:
    """Whether rows of this type on the CPU go by it; on meta, where nothing can be tried, whether they should."""
    return scores.dtype is torch.bfloat16 and multiplies(scores.dtype) and (scores.is_meta or (can_map() and _works()))


def softmax(scores: torch.Tensor) -> torch.Tensor:
    """Over the last dimension of contiguous scores in a type that goes by it: another tensor of the same shape."""
    output = torch.softmax(seen_as_packed(scores), dim=-1)
    room = torch.frombuffer(raw_bytes(output), dtype=scores.dtype).view(scores.shape)
    room.lies_in = output  # type: ignore[attr-defined]  # kept alive by the tensor that looks into it
    return room


@functools.cache
def _works() -> bool:
    """Whether this torch has it as it should be: tried with rows that have a place without a say."""
    scores = torch.linspace(-9, 9, 3 * MULTIPLE).to(torch.bfloat16).view(1, 3, MULTIPLE).clone()
    scores[:, :, -1] = -math.inf
    try:
        found, expected = softmax(scores), torch.softmax(scores.float(), dim=-1)
    except (RuntimeError, AttributeError, OSError, TypeError, ValueError):  # another version of torch
        return False
    return torch.allclose(found.float(), expected, atol=4e-3, rtol=0)
