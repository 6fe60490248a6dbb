"""From a request and a ceiling to a plan, or to what would fit. Pure arithmetic: loads nothing, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sdcli.domain import DtypeName, Guidance, Plan, Request, StageNeed
from sdcli.errors import WillNotFit
from sdcli.memory.footprint import denoise_bytes, stage_needs, weights_of
from sdcli.memory.speed import TYPICAL_SPEED, Speed, step_seconds
from sdcli.models.folder import Model
from sdcli.units import MIB, format_limit, format_size

MARGIN_BYTES = 16 * MIB
"""Kept free between the prediction and the ceiling: the heap's gaps vary by as much from run to run."""

SCRATCH_BYTES = 16 * MIB
SMALL_SCRATCH_BYTES = 8 * MIB

OFFER_BYTES = 16 * MIB
"""Ceilings that are offered are multiples of this: the baseline itself differs by a few MiB from run to run."""

VAE_TILE = 2
"""Rows of latents that the autoencoder goes by, when it may not keep whole maps that it could compute again."""

TIGHT = "freed memory goes back at once, and the autoencoder computes some maps twice rather than keep them"

SIZES = (1024, 768, 640, 512, 448, 384, 320, 256, 192, 128, 64)
"""Longer sides that a refused request is offered."""


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


def make_plan(
    model: Model,
    request: Request,
    dtype: DtypeName,
    limit_bytes: int | None,
    baseline_bytes: int,
    speed: Speed = TYPICAL_SPEED,
) -> Planned:
    """The fastest plan whose every stage stays under the ceiling.

    Raises WillNotFit naming the stage, its need, and the nearest ceiling and size that would do.
    """
    fitting = []
    for plan in _candidates(model, request, dtype, limit_bytes, baseline_bytes):
        needs = stage_needs(model, request, plan, dtype, baseline_bytes)
        planned = Planned(plan, needs, step_seconds(model, request, plan, dtype, speed))
        if limit_bytes is None or planned.peak_bytes + MARGIN_BYTES <= limit_bytes:
            fitting.append(planned)
    if fitting:
        return min(fitting, key=lambda planned: planned.step_s)
    raise WillNotFit(_what_would_fit(model, request, dtype, limit_bytes or 0, baseline_bytes))


def smallest_limit_bytes(model: Model, request: Request, dtype: DtypeName, baseline_bytes: int) -> int:
    """A ceiling under which the request runs: the least, rounded up to whole steps of OFFER_BYTES."""
    needs = stage_needs(model, request, _smallest(request), dtype, baseline_bytes)
    peak = max(need.peak_bytes for need in needs)
    return -(-(peak + MARGIN_BYTES) // OFFER_BYTES) * OFFER_BYTES


def _candidates(
    model: Model, request: Request, dtype: DtypeName, limit_bytes: int | None, baseline_bytes: int
) -> Iterator[Plan]:
    """Every way that may be the fastest: all of the denoiser resident, or as much as fits; guidance batched or not."""
    everything = weights_of(model.unet, dtype).matrices_bytes
    size = format_size(everything)
    tactics: list[tuple[Guidance, int, str]] = [
        ("batched", SCRATCH_BYTES, "guidance batched: one pass a step"),
        ("batched", SMALL_SCRATCH_BYTES, "guidance batched, with a smaller attention scratch"),
        ("sequential", SMALL_SCRATCH_BYTES, "guidance one pass after another: half the activations"),
    ]
    if not request.guided:
        tactics = [
            ("batched", SCRATCH_BYTES, "no guidance: one pass a step"),
            ("batched", SMALL_SCRATCH_BYTES, "no guidance: one pass a step, with a smaller attention scratch"),
        ]
    for guidance, scratch, why in tactics:
        reason = f"the denoiser's {size} stay in memory across steps"
        resident = Plan("resident", everything, guidance, scratch, None, (reason, why))
        yield from (resident, _tightened(resident))
    if limit_bytes is None:
        return
    for guidance, scratch, why in tactics:
        empty = Plan("streamed", 0, guidance, scratch, None, (f"the denoiser's {size} stream from the file", why))
        for streamed in (empty, _tightened(empty)):
            room = limit_bytes - MARGIN_BYTES - baseline_bytes - denoise_bytes(model, request, streamed, dtype)
            share = min(room, everything)
            if share > 0:
                reason = f"{format_size(share)} of the denoiser's {size} stay in memory, the rest streams from the file"
                reasons = (reason, *streamed.reasons[1:])
                yield replace(streamed, residency="partial", resident_bytes=share, reasons=reasons)
            yield streamed


def _tightened(plan: Plan) -> Plan:
    return replace(plan, vae_tile=VAE_TILE, reasons=(*plan.reasons, TIGHT))


def _smallest(request: Request) -> Plan:
    guidance: Guidance = "sequential" if request.guided else "batched"
    return Plan("streamed", 0, guidance, SMALL_SCRATCH_BYTES, VAE_TILE, ())


def _what_would_fit(model: Model, request: Request, dtype: DtypeName, limit_bytes: int, baseline_bytes: int) -> str:
    """One line: which stage needs what, and the nearest ceiling and size that would do."""
    ceiling = format_size(limit_bytes)
    if limit_bytes <= baseline_bytes:
        need = format_size(baseline_bytes)
        at_least = smallest_limit_bytes(model, request, dtype, baseline_bytes)
        return (
            f"will not fit: Python and torch alone take {need}, the ceiling is {ceiling};"
            f" give --mem-limit {format_limit(at_least)} or more"
        )
    needs = stage_needs(model, request, _smallest(request), dtype, baseline_bytes)
    worst = max(needs, key=lambda need: need.peak_bytes)
    at_least = smallest_limit_bytes(model, request, dtype, baseline_bytes)
    message = (
        f"will not fit: the stage {worst.name} needs {format_size(worst.peak_bytes + MARGIN_BYTES)}"
        f" at {request.width}x{request.height}, the ceiling is {ceiling}; give --mem-limit {format_limit(at_least)}"
    )
    smaller = _largest_that_fits(model, request, dtype, limit_bytes, baseline_bytes)
    return message + (f" or -W {smaller[0]} -H {smaller[1]}" if smaller else "; no smaller picture fits either")


def _largest_that_fits(
    model: Model, request: Request, dtype: DtypeName, limit_bytes: int, baseline_bytes: int
) -> tuple[int, int] | None:
    """The largest picture of about the same shape under the ceiling."""
    longer = max(request.width, request.height)
    for side in SIZES:
        width, height = (max(64, round(s * side / longer / 64) * 64) for s in (request.width, request.height))
        if side < longer:
            smaller = replace(request, width=width, height=height)
            if smallest_limit_bytes(model, smaller, dtype, baseline_bytes) <= limit_bytes:
                return width, height
    return None
