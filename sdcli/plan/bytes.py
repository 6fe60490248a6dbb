"""How many bytes each stage will take: weights that lie in memory, bytes that are alive, and a remainder.

Weights and bytes alive come from a dry run of the network (engine/count.py), exactly. The remainder is what no dry run
sees: the libraries' compiled kernels and scratch, and the heap's gaps (plan/remainder.py). No torch, no psutil.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from sdcli.domain import DTYPE_BYTES, DtypeName, Plan, Request, StageNeed
from sdcli.families.contract import Geometry, Stage
from sdcli.plan.counts import Counts, StageCount, WayCount
from sdcli.plan.remainder import Remainder
from sdcli.plan.table import matrices
from sdcli.plan.ways import way_of_steps
from sdcli.units import MIB

MAKING_BYTES = 24 * MIB
"""What making a prepared copy takes besides the largest weight twice: padded layouts, kernels, the heap's gaps."""

STREAMING_BYTES = 6 * MIB
"""What streaming from a prepared copy takes: the thread that reads ahead, and descriptions of the weights."""

STREAMED_TIMES = 2
"""The largest weight, cast and laid out, that streaming from the model's own file takes."""

LEFT_BY_MAKING_BYTES = 6 * MIB
"""What that leaves behind in the heap and in the library's caches."""

LEFT_BY_SLICES_BYTES = 4 * MIB
"""What products of slices of weights keep for themselves, beyond what other steps leave behind."""

LEFT_BY_ADAPTERS_BYTES = 24 * MIB
"""Gaps that LoRAs beside layers leave in the heap, where freed memory goes back at the stage's end only."""

ENLARGING_BYTES, ENLARGED_BYTES = 36, 18
"""For each pixel of an enlarged picture, in RGB: as numbers in FP32 twice and more while it is made, and once besides
its 8 bits while it is encoded."""

PREVIEW_TIMES = 4
"""A preview takes so many times what latents do: those before the step, those without noise, and colours."""

HANDED_TIMES = 3
"""A second worker is handed all pictures' latents before it loads anything: so many times they are there, on both sides
of the pipe, with what a checkpoint has besides (2.3 times, measured)."""


@dataclass(frozen=True)
class Subject:
    """What a plan is for: a request, its type, the stages of the model's family, and counts for any size of picture."""

    request: Request
    dtype: DtypeName
    stages: tuple[Stage, ...]
    geometry: Geometry
    counts_of: Callable[[Request], Counts]
    previews: bool = False
    """Whether steps are shown while they go on."""
    slices_stay: bool = False
    """Whether weights that steps use by the slice may stay in memory, as on a GPU, where they do not lie already."""
    adapted: bool = False
    """Whether LoRAs change weights that steps use."""

    @cached_property
    def counts(self) -> Counts:
        """Of the request itself."""
        return self.counts_of(self.request)

    def of_round(self, number: int) -> Subject:
        """One of its rounds of steps, with counts of all stages."""
        rounds = self.request.rounds
        if len(rounds) == 1:
            return self
        stages = tuple(stage for stage in self.stages if stage.round == number)
        return replace(self, request=rounds[number], stages=stages, counts_of=lambda _: self.counts)

    @cached_property
    def rounds(self) -> tuple[Subject, ...]:
        """All of them: the last one has the largest picture, and takes most."""
        return tuple(self.of_round(number) for number in range(len(self.request.rounds)))

    @cached_property
    def steps(self) -> Stage:
        """The last stage that runs at every step: the only one whose weights are worth keeping."""
        return [stage for stage in self.stages if stage.times == "steps"][-1]

    @cached_property
    def weights(self) -> Weights:
        """Those of that stage."""
        return weights_of(self.counts[self.steps.name], self.dtype, self.slices_stay)

    @cached_property
    def by_slices(self) -> bool:
        """Whether the steps use their weights by the slice (weights/sliced.py)."""
        return any(use.use == "sliced" for use in self.counts[self.steps.name].weights)

    @property
    def latents_bytes(self) -> int:
        """One picture's latents in FP32. The worker and the host have one's in memory, the others' lie in files."""
        height, width = self.geometry.latent_shape(self.request)
        return self.geometry.latent_channels * height * width * DTYPE_BYTES["fp32"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A stage's weights as they will lie in memory: bytes in the arithmetic's type. Vectors are always resident."""

    matrices_bytes: int
    """Of all that may stay in memory or stream."""
    largest_bytes: int
    """Of those that are laid out, or cast as a whole."""
    vectors_bytes: int


def weights_of(count: StageCount, dtype: DtypeName, slices_stay: bool = False) -> Weights:
    """Sizes. Tables stay mapped and count nothing, nor does what is copied while a stage runs, which is alive then."""
    item = DTYPE_BYTES[dtype]
    everything = sum(use.numel for use in matrices(count, slices_stay)) * item
    sizes = [use.numel * item for use in matrices(count)]
    vectors = sum(use.numel for use in count.weights if use.use == "vector") * item
    return Weights(everything, max(sizes, default=0), vectors)


def stage_need(
    subject: Subject, plan: Plan, stage: Stage, baseline_bytes: int, remainder: Remainder, making: bool = False
) -> StageNeed:
    """The predicted peak footprint of a stage; `making` is of the prepared copy."""
    part = subject.rounds[stage.round] if len(subject.rounds) > 1 else subject
    if stage.times == "steps":
        left = left_by(subject.rounds[0], plan, remainder) if stage.round else 0
        extra, unseen = steps_bytes(part, plan, remainder, making) + left, _unseen_bytes(part, plan, remainder)
    elif stage.times == "pictures":
        extra, unseen = _pictures(part, plan, stage, remainder), 0
    elif stage.times == "once":
        extra, unseen = _once(part, plan, stage, remainder), 0
    else:
        extra, unseen = _between(subject, plan, stage, remainder), 0
    return StageNeed(stage.name, baseline_bytes + extra, unseen)


def _way(plan: Plan, stage: Stage) -> str:
    """The plan's, else the stage's first and quickest one."""
    return plan.ways.get(stage.name, next(iter(stage.ways), ""))


def _once(subject: Subject, plan: Plan, stage: Stage, remainder: Remainder) -> int:
    count = subject.counts[stage.name]
    weights, way = weights_of(count, subject.dtype), count.ways[_way(plan, stage)]
    lent = weights.vectors_bytes + weights.largest_bytes
    return stage.extra_bytes + lent + way.live_bytes + remainder.once(way)


def _between(subject: Subject, plan: Plan, stage: Stage, remainder: Remainder) -> int:
    """Of a stage between two rounds: a picture to pixels that are enlarged, or those to latents."""
    first, last = subject.rounds
    count = subject.counts[stage.name]
    weights, way = weights_of(count, subject.dtype), count.ways[_way(plan, stage)]
    pixels = last.request.width * last.request.height
    alive = max(way.live_bytes, ENLARGING_BYTES * pixels)
    if stage.times == "to_latents":
        alive = way.live_bytes + ENLARGED_BYTES * pixels
    lent = weights.vectors_bytes + weights.largest_bytes
    return lent + alive + 2 * last.latents_bytes + remainder.pictures(way, way_of(first, plan), fresh=False)


def left_by(first: Subject, plan: Plan, remainder: Remainder) -> int:
    """What kernels of a first round keep, which the second one finds there."""
    return remainder.kernels(way_of(first, plan))


def _pictures(subject: Subject, plan: Plan, stage: Stage, remainder: Remainder) -> int:
    count = subject.counts[stage.name]
    weights, way = weights_of(count, subject.dtype), count.ways[_way(plan, stage)]
    lent = weights.vectors_bytes + weights.largest_bytes
    work = (
        lent
        + way.live_bytes
        + remainder.pictures(way, way_of(subject, plan), plan.fresh_decode)
        + canvas_bytes(subject)
    )
    work += LEFT_BY_SLICES_BYTES if subject.by_slices and not plan.fresh_decode else 0
    handing = HANDED_TIMES * subject.request.count * subject.latents_bytes if plan.fresh_decode else 0
    return max(2 * subject.latents_bytes + work, handing)


def steps_bytes(subject: Subject, plan: Plan, remainder: Remainder, making: bool = False) -> int:
    """Bytes of the denoise stage over the baseline."""
    weights = subject.weights
    resident = int(min(plan.resident_bytes, weights.matrices_bytes) * remainder.padding)
    # laying out what stays, or goes to a prepared copy, has the largest weight there twice; using a copy not at all
    laying_out = 2 * weights.largest_bytes if making or not plan.prepared else 0
    copying = MAKING_BYTES if making and plan.prepared else 0
    return max(
        resident + step_bytes(subject, plan, remainder, making),
        weights.vectors_bytes + laying_out + copying,
    )


def step_bytes(subject: Subject, plan: Plan, remainder: Remainder, making: bool = False) -> int:
    """Bytes that a denoise step takes over the baseline and resident weights."""
    weights = subject.weights
    streaming = LEFT_BY_MAKING_BYTES if making and plan.prepared else 0
    streaming += min(STREAMING_BYTES, weights.largest_bytes) if plan.prepared else 0
    if weights.largest_bytes and not plan.prepared and plan.residency != "resident":
        streaming += STREAMED_TIMES * weights.largest_bytes + remainder.laying_out_bytes
    kept = 2 * subject.latents_bytes + (remainder.left_bytes if subject.request.strength is not None else 0)
    kept += LEFT_BY_ADAPTERS_BYTES if subject.adapted and plan.give_back == "stage" and not remainder.by_live else 0
    kept += mask_bytes(subject) + (PREVIEW_TIMES * subject.latents_bytes if subject.previews else 0)
    alive = way_of(subject, plan).live_bytes
    return weights.vectors_bytes + streaming + kept + alive + _unseen_bytes(subject, plan, remainder)


def mask_bytes(subject: Subject) -> int:
    """What goes along with a mask at every step, if there is one: a number for each pixel, and latents.

    Those of the init image and of what is outside the mask, their noise, and what is put together of them.
    """
    request = subject.request
    return request.width * request.height * DTYPE_BYTES["fp32"] + 5 * subject.latents_bytes if request.masked else 0


def canvas_bytes(subject: Subject) -> int:
    """What the host takes while the drawn part is laid over a picture: three more of that size, in RGB."""
    width, height = subject.request.canvas or (0, 0)
    return width * height * 3 * 3


def _unseen_bytes(subject: Subject, plan: Plan, remainder: Remainder) -> int:
    sizes = plan.give_back, subject.weights.largest_bytes, subject.by_slices
    return remainder.steps(way_of(subject, plan), *sizes)


def way_of(subject: Subject, plan: Plan) -> WayCount:
    """The count of the way that the plan goes a step."""
    samples = samples_at_a_time(subject.request, plan)
    return subject.counts[subject.steps.name].ways[way_of_steps(samples, plan.attention_scratch_bytes)]


def samples_at_a_time(request: Request, plan: Plan) -> int:
    """How many samples go through the denoiser at once."""
    return 2 if request.guided and plan.guidance == "batched" else 1
