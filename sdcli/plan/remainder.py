"""What a stage takes besides weights and whole maps: the libraries' compiled kernels and scratch, and the heap's gaps.

Measured, for one kind of processor after another (benchmarks/RESULTS.md), and rounded up. No torch, no psutil.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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

    def widened(self, share: float) -> Overhead:
        """So much more everywhere."""

        def more(curve: Curve) -> Curve:
            return tuple((size, taken * (1 + share)) for size, taken in curve)

        denoise = {give_back: more(curve) for give_back, curve in self.denoise.items()}
        return replace(self, denoise=denoise, decode=more(self.decode), fresh_decode=more(self.fresh_decode))


WITH_AVX512 = Overhead(
    denoise={
        "stage": ((0, 45), (0.625, 74), (1.41, 116), (2.34, 156), (3.75, 215), (5.63, 295), (10, 448)),
        "block": ((0, 44), (0.625, 68), (1.41, 104), (2.34, 131), (3.75, 155), (5.63, 186), (10, 310)),
        "piece": ((0, 38), (0.625, 58), (1.41, 86), (2.34, 110), (3.75, 138), (5.63, 164), (10, 228)),
    },
    decode=((0, 24), (0.28, 60), (0.47, 74), (0.75, 78), (2, 78)),
    fresh_decode=((0, 8), (0.28, 19), (0.5, 22), (1, 22)),
)
"""Measured with Intel's matrix unit, in bf16."""

WITH_AVX512_IN_FP32 = Overhead(
    denoise={
        "stage": ((0, 46), (1.25, 90), (5, 228), (7.5, 326), (20, 750)),
        "block": ((0, 44), (1.25, 71), (5, 160), (7.5, 216), (20, 480)),
        "piece": ((0, 42), (0.75, 55), (3, 98), (4.5, 130), (12, 275)),
    },
    decode=((0, 18), (0.25, 22), (1, 42), (4, 46)),
    fresh_decode=((0, 24), (0.25, 25), (1, 17), (4, 20)),
)
"""Measured without the matrix unit and without bf16, up to 768x512; larger sizes go on in straight lines."""

WITH_AVX2 = Overhead(
    denoise={
        "stage": ((0, 46), (0.75, 73), (3.0, 134), (4.5, 190), (6.75, 265), (12, 430)),
        "block": ((0, 42), (0.75, 64), (2.81, 118), (4.5, 150), (6.75, 194), (12, 303)),
        "piece": ((0, 39), (0.75, 61), (2.81, 111), (4.5, 143), (6.75, 184), (12, 288)),
    },
    decode=((0, 20), (0.25, 38), (1, 40), (4, 40)),
    fresh_decode=((0, 12), (0.25, 17), (1, 15), (4, 15)),
    padding=1.0125,
)
"""Measured in fp32. Its compiled kernels are small, samples go one at a time, and tiles take 11 to 20 MiB."""


UNMEASURED_SHARE = 0.25
"""So much more is planned with where a kind of processor was never measured: up to a tenth of a ceiling."""


def along(curve: Curve, size_bytes: float) -> int:
    """Bytes that the curve has for this size."""
    size = size_bytes / MIB
    (left, low), (right, high) = next((pair for pair in pairwise(curve) if size <= pair[1][0]), curve[-2:])
    return int((low + (high - low) * (size - left) / (right - left)) * MIB)
