"""What a stage takes besides weights and whole maps: the libraries' compiled kernels and scratch, and the heap's gaps.

Measured, for one kind of processor after another (benchmarks/RESULTS.md), and rounded up. No torch, no psutil.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sdcli.domain import GiveBack
from sdcli.units import MIB

Curve = tuple[tuple[float, float], ...]
"""Points (size, bytes taken), both in MiB: straight lines between them, and on beyond the last."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """The curves of one kind of processor.

    `denoise` is what a step of two samples takes, over the first level's tensor (base channels x latents) of one: maps
    too, and the more, the rarer freed memory goes back. Allocations of 32 MiB and more leave no gaps, so the curves
    become flatter. `decode` is over one channel of the picture's own size; the decoder finds there what the denoiser
    left behind, and in a worker of its own (`fresh_decode`) nothing.
    """

    denoise: dict[GiveBack, Curve]
    decode: Curve
    fresh_decode: Curve
    padding: float = 1.0
    """Packed weights are so many times as large as plain ones."""


WITH_AVX512 = Overhead(
    denoise={
        "stage": ((0, 51), (0.625, 87), (2.5, 207), (5.63, 373), (10, 548)),
        "block": ((0, 48), (0.625, 72), (1.5, 115), (2.4, 130), (3.75, 182), (6, 236), (10, 318)),
        "piece": ((0, 39), (0.625, 59), (1.4, 87), (2.34, 115), (10, 233)),
    },
    decode=((0, 26), (0.28, 64), (1, 82), (2, 82)),
    fresh_decode=((0, 8), (0.28, 19), (0.5, 22), (1, 22)),
)
"""Measured with Intel's matrix unit, in bf16."""

WITH_AVX2 = Overhead(
    denoise={
        "stage": ((0, 50), (0.75, 94), (1.69, 140), (3.0, 238), (4.5, 323), (6.75, 438), (12, 673)),
        "block": ((0, 46), (0.75, 76), (1.69, 108), (3.0, 141), (4.5, 182), (6.75, 243), (12, 363)),
        "piece": ((0, 42), (0.75, 70), (1.69, 95), (3.0, 126), (4.5, 163), (6.75, 206), (12, 308)),
    },
    decode=((0, 14), (0.25, 26), (1, 36), (2, 38), (4, 42)),
    fresh_decode=((0, 5), (0.5, 14), (1, 18), (4, 22)),
    padding=1.0125,
)
"""Measured in fp32. Its compiled kernels are small, samples go one at a time, and tiles take 11 to 20 MiB."""


def along(curve: Curve, size_bytes: float) -> int:
    """Bytes that the curve has for this size."""
    size = size_bytes / MIB
    (left, low), (right, high) = next((pair for pair in pairwise(curve) if size <= pair[1][0]), curve[-2:])
    return int((low + (high - low) * (size - left) / (right - left)) * MIB)
