"""Numbers of eight bits as wider ones: the library converts them one by one, and here their bits are moved.

Float8's exponents (Micikevicius et al. 2022, https://arxiv.org/abs/2209.05433) lie within FP16's: e5m2 is its upper
half, and e4m3fn one bit further down, its sign moved up, is 2^-8 times the number. Both are exact.
"""

from __future__ import annotations

import torch

AT_A_TIME = 2**16
"""Numbers: half a MiB in between."""

_MAGNITUDE, _SPREAD_SIGN = 0x7F, ~(1 << 14)
"""Of a byte all but its sign; and of a number that was made longer all but the copy of its sign."""

_APART = 256.0
"""2^(15 - 7), by the biases of the two exponents."""


def widen(eight: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """`room`, of the same shape and any type of more bits, with the numbers of `eight`."""
    if eight.dim() == 0 or room.device.type != "cpu" or eight.device.type != "cpu":
        return room.copy_(eight)
    rows = max(1, AT_A_TIME // max(1, eight[:1].numel()))
    for some, into in zip(eight.split(rows), room.split(rows), strict=True):
        if eight.dtype is torch.float8_e5m2:
            into.copy_((some.view(torch.int8).to(torch.int16) << 8).view(torch.float16).float())
        elif eight.dtype is torch.float8_e4m3fn and not _has_nan(some):
            bits = (some.view(torch.int8).to(torch.int16) << 7).bitwise_and_(_SPREAD_SIGN)
            _spread(bits.view(torch.float16), into)
        else:
            into.copy_(some)
    return room


def _spread(numbers: torch.Tensor, room: torch.Tensor) -> None:
    """Times 2^8: in FP32, which is quickest."""
    if room.dtype is torch.float32:
        room.copy_(numbers).mul_(_APART)
    else:
        room.copy_(numbers.float().mul_(_APART))


def _has_nan(some: torch.Tensor) -> bool:
    """Whether any of them is none, of which e4m3fn has two."""
    return some.numel() > 0 and int((some.view(torch.uint8) & _MAGNITUDE).max()) == _MAGNITUDE
