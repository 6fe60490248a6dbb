"""From a request and a ceiling to a plan, or to what would fit. Pure arithmetic: loads nothing, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from sdcli.domain import DtypeName, GiveBack, Guidance, Plan, Request, StageNeed
from sdcli.errors import WillNotFit
from sdcli.models.folder import Model
from sdcli.plan.bytes import first_tensor_bytes, stage_needs, step_bytes, weights_of
from sdcli.plan.remainder import WITH_AVX512, Overhead
from sdcli.plan.seconds import TYPICAL_SPEED, Speed, decode_extra_seconds, step_seconds
from sdcli.units import MIB, format_limit, format_size

MARGIN_BYTES = 16 * MIB
"""Kept free under the ceiling: the heap's gaps vary by as much from run to run."""

SCRATCH_BYTES, SMALL_SCRATCH_BYTES = 16 * MIB, 8 * MIB

UNCERTAIN_TENSORS, UNCERTAIN_SHARE = 30, 0.05
"""Where freed memory goes back after a stage only, the heap's gaps differ by so many of the first level's tensors from
run to run. A ceiling that this is a good share of deserves a prediction that is nearer."""

OFFER_BYTES = 16 * MIB
"""Ceilings that are offered are multiples of this: the baseline itself differs by a few MiB from run to run."""

VAE_TILE = 2
"""Rows of latents that the autoencoder goes by, when it may not keep whole maps that it could compute again."""

SMALL_SCRATCH = "a small attention scratch"
RECOMPUTE = "the autoencoder computes some maps twice rather than keep them"
IN_MEMORY = "the model lies on a RAM disk, where mapped pages are counted as memory: each is let go when it was read"
FRESH = "a worker of its own decodes, where nothing of the denoiser is left"

GIVE_BACK: dict[GiveBack, str] = {
    "stage": "",
    "block": "freed memory goes back to the system after each level of the denoiser",
    "piece": "freed memory goes back to the system after each piece of the denoiser",
}

SIZES = (1024, 768, 640, 512, 448, 384, 320, 256, 192, 128, 64)
"""Longer sides that a refused request is offered."""


@dataclass(frozen=True, slots=True)
class Means:
    """What a plan may count on: the speeds, a prepared copy of the denoiser, attention that keeps no scores."""

    speed: Speed = TYPICAL_SPEED
    prepared: bool = False
    fused: bool = False
    heap: bool = True
    """Whether giving freed memory back to the system in the midst of a step does anything."""
    batches: bool = True
    """Whether both samples of guidance may go together."""
    making: bool = False
    """Whether the prepared copy is still to be made."""
    overhead: Overhead = WITH_AVX512
    """What this kind of processor takes besides weights and maps."""
    in_memory: bool = False
    """Whether the model lies on a RAM disk."""
    margin_bytes: int = MARGIN_BYTES
    """Kept free between the prediction and the ceiling."""
    note: str = ""
    """What makes every plan larger than it need be, and what to do about it: a reason of each, and of a refusal."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the peaks predicted for it, and about how long a denoise step will take."""

    plan: Plan
    needs: tuple[StageNeed, ...]
    step_s: float

    @property
    def peak_bytes(self) -> int:
        """The highest of the stages' peaks."""
        return max(need.peak_bytes for need in self.needs)

    def because(self, reason: str) -> Planned:
        """The same with one more reason, unless it is empty."""
        return replace(self, plan=replace(self.plan, reasons=(*self.plan.reasons, reason))) if reason else self


def make_plan(
    model: Model,
    request: Request,
    dtype: DtypeName,
    limit_bytes: int | None,
    baseline_bytes: int,
    means: Means = Means(),
) -> Planned:
    """The fastest plan whose every stage stays under the ceiling.

    Raises WillNotFit naming the stage, its need, and the nearest ceiling and size that would do.
    """
    fitting = []
    for plan in _candidates(model, request, dtype, limit_bytes, baseline_bytes, means):
        if (
            limit_bytes is not None
            and means.heap
            and _uncertain_bytes(model, request, plan, dtype) > UNCERTAIN_SHARE * limit_bytes
        ):
            continue
        needs = stage_needs(model, request, plan, dtype, baseline_bytes, means.overhead, means.making)
        planned = Planned(plan, needs, step_seconds(model, request, plan, dtype, means.speed))
        if limit_bytes is None or planned.peak_bytes + means.margin_bytes <= limit_bytes:
            fitting.append(planned)
    if fitting:
        best = min(fitting, key=lambda one: (one.step_s, decode_extra_seconds(request, one.plan, means.speed)))
        return best.because(means.note)
    refusal = _what_would_fit(model, request, dtype, limit_bytes or 0, baseline_bytes, means)
    raise WillNotFit("; ".join(filter(None, (refusal, means.note))))


def _uncertain_bytes(model: Model, request: Request, plan: Plan, dtype: DtypeName) -> int:
    """By how much a prediction for this plan may be too high."""
    return UNCERTAIN_TENSORS * first_tensor_bytes(model, request, dtype) if plan.give_back == "stage" else 0


def smallest_limit_bytes(
    model: Model, request: Request, dtype: DtypeName, baseline_bytes: int, means: Means = Means()
) -> int:
    """A ceiling under which the request runs: the least, rounded up to whole steps of OFFER_BYTES."""
    needs = stage_needs(model, request, _smallest(request, means), dtype, baseline_bytes, means.overhead, means.making)
    peak = max(need.peak_bytes for need in needs)
    return -(-(peak + means.margin_bytes) // OFFER_BYTES) * OFFER_BYTES


def _candidates(
    model: Model, request: Request, dtype: DtypeName, limit_bytes: int | None, baseline_bytes: int, means: Means
) -> Iterator[Plan]:
    """Every way that may be the fastest: all of the denoiser resident, or as much as fits, under each tactic."""
    everything = weights_of(model.unet, dtype).matrices_bytes
    size = format_size(everything)
    source = "a prepared copy in the cache" if means.prepared else "the model's file"
    for tactic in _tactics(request, means):
        reason = f"the denoiser's {size} stay in memory across steps"
        yield replace(tactic, residency="resident", resident_bytes=everything, reasons=(reason, *tactic.reasons))
        if limit_bytes is None:
            continue
        streamed = replace(tactic, prepared=means.prepared)
        step = step_bytes(model, request, streamed, dtype, means.overhead)
        room = limit_bytes - means.margin_bytes - baseline_bytes - step
        share = min(room, everything)
        if share > 0:
            reason = f"{format_size(share)} of the denoiser's {size} stay in memory, the rest streams from {source}"
            yield replace(streamed, residency="partial", resident_bytes=share, reasons=(reason, *tactic.reasons))
        yield replace(streamed, reasons=(f"the denoiser's {size} stream from {source}", *tactic.reasons))


def _tactics(request: Request, means: Means) -> Iterator[Plan]:
    """Ways to spend less on everything but the weights, as plans that keep no weights yet."""
    passes: list[tuple[Guidance, str]] = [("batched", "no guidance: one pass a step")]
    if request.guided:
        passes = [("sequential", "guidance one pass after another: half the activations")]
        if means.batches:
            passes.insert(0, ("batched", "guidance batched: one pass a step"))
    scratches = ((0, ""),) if means.fused else ((SCRATCH_BYTES, ""), (SMALL_SCRATCH_BYTES, SMALL_SCRATCH))
    tiles = ((None, ""), (VAE_TILE, RECOMPUTE))
    giving: tuple[GiveBack, ...] = tuple(GIVE_BACK) if means.heap else ("stage",)
    workers = ((False, ""), (True, FRESH)) if means.heap and request.strength != 0 else ((False, ""),)
    for (guidance, why), give_back, scratch, tile, fresh in product(passes, giving, scratches, tiles, workers):
        disk = IN_MEMORY if means.in_memory else ""
        reasons = (why, *filter(None, (scratch[1], GIVE_BACK[give_back], tile[1], fresh[1], disk)))
        yield Plan("streamed", 0, guidance, scratch[0], tile[0], reasons, give_back, fresh_decode=fresh[0])


def _smallest(request: Request, means: Means) -> Plan:
    """What needs least."""
    return replace([*_tactics(request, means)][-1], prepared=means.prepared)


def _what_would_fit(
    model: Model, request: Request, dtype: DtypeName, limit_bytes: int, baseline_bytes: int, means: Means
) -> str:
    """One line: which stage needs what, and the nearest ceiling and size that would do."""
    ceiling = format_size(limit_bytes)
    if limit_bytes <= baseline_bytes:
        need = format_size(baseline_bytes)
        at_least = smallest_limit_bytes(model, request, dtype, baseline_bytes, means)
        return (
            f"will not fit: Python and torch alone take {need}, the ceiling is {ceiling};"
            f" give --mem-limit {format_limit(at_least)} or more"
        )
    needs = stage_needs(model, request, _smallest(request, means), dtype, baseline_bytes, means.overhead, means.making)
    worst = max(needs, key=lambda need: need.peak_bytes)
    at_least = smallest_limit_bytes(model, request, dtype, baseline_bytes, means)
    message = (
        f"will not fit: the stage {worst.name} needs {format_size(worst.peak_bytes + means.margin_bytes)}"
        f" at {request.width}x{request.height}, the ceiling is {ceiling}; give --mem-limit {format_limit(at_least)}"
    )
    smaller = _largest_that_fits(model, request, dtype, limit_bytes, baseline_bytes, means)
    return message + (f" or -W {smaller[0]} -H {smaller[1]}" if smaller else "; no smaller picture fits either")


def _largest_that_fits(
    model: Model, request: Request, dtype: DtypeName, limit_bytes: int, baseline_bytes: int, means: Means
) -> tuple[int, int] | None:
    """The largest picture of about the same shape under the ceiling."""
    longer = max(request.width, request.height)
    for side in SIZES:
        width, height = (max(64, round(s * side / longer / 64) * 64) for s in (request.width, request.height))
        if side < longer:
            smaller = replace(request, width=width, height=height)
            if smallest_limit_bytes(model, smaller, dtype, baseline_bytes, means) <= limit_bytes:
                return width, height
    return None
