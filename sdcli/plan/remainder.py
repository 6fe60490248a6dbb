"""What a stage takes besides weights and bytes that are alive: compiled kernels, and gaps in the heap.

Both follow from the dry run. Every kernel of another shape is compiled once, to some 0.3 MiB of code and tables. What
is freed in the heap leaves gaps where the next tensor does not fit, the more, the more was alive there, and the rarer
freed memory goes back to the system. Measured for one kind of processor after another (benchmarks/RESULTS.md), and
rounded up. No torch, no psutil.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from sdcli.domain import GiveBack
from sdcli.plan.counts import WayCount
from sdcli.units import KIB, MIB

Curve = tuple[tuple[float, float], ...]
"""Points (alive in the heap, gaps), both in MiB: straight lines between them, and on beyond the last."""


@dataclass(frozen=True, slots=True)
class Remainder:
    """Of one kind of processor.

    `steps` has gaps by when freed memory goes back. The last stage finds those that the steps left (`after_steps`), and
    in a worker of its own, as the first stages do, hardly any (`fresh_worker`).
    """

    kernel_bytes: int
    steps_gaps: Mapping[GiveBack, Curve]
    after_steps: Curve
    fresh_worker: Curve = ((0, 8), (100, 12))
    steps_by_slices: Curve = ((0, 64), (120, 72), (200, 90))
    """Gaps where weights are used by the slice, by all that is alive: tensors are of few sizes, and the next one fits
    where one has gone."""
    after_share: float = 0.0
    """Of what the steps had alive in the heap, that the last stage finds as gaps besides."""
    scratch_share: float = 0.12
    """Of the largest weight, that the kernels which multiply by it keep for themselves."""
    padding: float = 1.0
    """Packed weights are so many times as large as plain ones."""
    by_live: bool = False
    """Whether gaps follow from all that is alive, as where one allocator has it all."""
    laying_out_bytes: int = 0
    """What laying out weights whenever they are used, since there is no prepared copy, leaves in the heap besides."""
    left_bytes: int = 12 * MIB
    """What the kernels of an init image's encoder keep, which the denoiser finds there."""
    times: float = 1.0
    """So many times all of it: what this machine's runs have shown, or a wide margin where nobody has measured."""

    def once(self, way: WayCount) -> int:
        """Of a stage that runs once, before the steps."""
        return self._of(way, self.fresh_worker)

    def steps(self, way: WayCount, give_back: GiveBack, largest_bytes: int, sliced: bool = False) -> int:
        """Of the denoise stage, whose largest weight has so many bytes, or whose weights are used by the slice."""
        if sliced and give_back != "stage":
            return int(self.times * (self.kernel_bytes * way.kernels + along(self.steps_by_slices, way.live_bytes)))
        return self._of(way, self.steps_gaps[give_back]) + int(self.times * self.scratch_share * largest_bytes)

    def pictures(self, way: WayCount, steps: WayCount, fresh: bool) -> int:
        """Of a stage that runs once a picture, after the steps of that way or in a worker of its own."""
        if fresh:
            return self._of(way, self.fresh_worker)
        return self._of(way, self.after_steps) + int(self.times * self.after_share * steps.heap_bytes)

    def kernels(self, way: WayCount) -> int:
        """Of a stage, what it has compiled."""
        return int(self.times * self.kernel_bytes * way.kernels)

    def grown(self, times: float) -> Remainder:
        """So many times of all of it."""
        return replace(self, times=self.times * times)

    def _of(self, way: WayCount, gaps: Curve) -> int:
        size_bytes = way.live_bytes if self.by_live else way.heap_bytes
        return int(self.times * (self.kernel_bytes * way.kernels + along(gaps, size_bytes)))


WITH_AVX512 = Remainder(
    kernel_bytes=368 * KIB,
    steps_gaps={
        "stage": ((0, 15), (9, 25), (13, 31), (23, 60), (40, 78), (60, 115), (85, 164), (136, 190)),
        "block": ((0, 15), (13, 28), (23, 47), (60, 63), (85, 69), (136, 121)),
        "piece": ((0, 15), (13, 23), (23, 42), (40, 51), (61, 56), (136, 79)),
    },
    after_steps=((0, 21), (27, 42), (48, 59), (62, 68), (105, 70), (200, 86)),
    padding=1.004,
)
"""Measured with Intel's matrix unit, in bf16."""

WITH_AVX512_BF16 = Remainder(
    kernel_bytes=160 * KIB,
    steps_gaps={
        "stage": ((0, 18), (16, 36), (24, 46), (34, 62), (46, 79), (68, 120), (93, 154), (128, 206)),
        **dict.fromkeys(
            ("block", "piece"), ((0, 12), (12, 20), (21, 27), (26, 36), (41, 51), (64, 55), (100, 71), (140, 130))
        ),
    },
    after_steps=((0, 14), (20, 37), (41, 41), (46, 50), (93, 57), (200, 68)),
    fresh_worker=((0, 8), (100, 11)),
    padding=1.004,
    laying_out_bytes=14 * MIB,
)
"""Measured on AMD's Zen 4 and 5, in bf16: kernels for vector units are small."""

WITH_AVX512_IN_FP32 = Remainder(
    kernel_bytes=368 * KIB,
    steps_gaps={
        "stage": ((0, 6), (113, 158), (226, 310)),
        "block": ((0, 6), (38, 31), (80, 45), (120, 62), (240, 110)),
        "piece": ((0, 6), (100, 32), (200, 60)),
    },
    steps_by_slices=((0, 26), (120, 42), (200, 84)),
    after_steps=((0, 15), (40, 28), (61, 38), (113, 42), (200, 54)),
    after_share=0.1,
)
"""Measured without the matrix unit and without bf16."""

WITH_AVX2 = Remainder(
    kernel_bytes=352 * KIB,
    steps_gaps={
        "stage": ((0, 12), (22, 18), (30, 35), (46, 55), (69, 88), (102, 130), (407, 461)),
        "block": ((0, 8), (22, 10), (30, 25), (46, 42), (102, 59), (407, 174)),
        "piece": ((0, 6), (22, 8), (30, 21), (43, 35), (69, 35), (102, 35), (407, 120)),
    },
    after_steps=((0, 5), (40, 32), (80, 40), (200, 50)),
    fresh_worker=((0, 12), (100, 20)),
    padding=1.0125,
    laying_out_bytes=32 * MIB,
)
"""Measured in fp32. Its compiled kernels are small, samples go one at a time, and tiles take 11 to 20 MiB."""

ON_CUDA = Remainder(
    kernel_bytes=0,
    steps_gaps=dict.fromkeys(("stage", "block", "piece"), ((0, 5), (45, 10), (407, 745))),
    after_steps=((0, 20), (280, 35), (474, 70), (1042, 240), (1778, 445), (4092, 1010)),
    scratch_share=0.0,
    by_live=True,
)
"""Measured on an H200 with torch 2.11: what its allocator keeps of what is freed, and scratch of the libraries there.
What their code takes is part of the baseline."""

UNMEASURED_TIMES = 1.5
"""So much more is planned with where a kind of processor was never measured, until this machine has run once."""


def along(curve: Curve, size_bytes: float) -> int:
    """Bytes that the curve has for this size."""
    size = size_bytes / MIB
    (left, low), (right, high) = next((pair for pair in pairwise(curve) if size <= pair[1][0]), curve[-2:])
    return int((low + (high - low) * (size - left) / (right - left)) * MIB)
