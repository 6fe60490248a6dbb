"""From a request and a ceiling to a plan, or to what would fit. Pure arithmetic: loads nothing, measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from sdcli.domain import GiveBack, Guidance, Plan, Request, StageNeed
from sdcli.errors import WillNotFit
from sdcli.families.contract import Stage
from sdcli.plan.bytes import Subject, left_by, samples_at_a_time, stage_need, step_bytes
from sdcli.plan.ceiling import options_for
from sdcli.plan.remainder import WITH_AVX512, Remainder
from sdcli.plan.remainders import Source
from sdcli.plan.seconds import NEW_WORKER_S, TYPICAL_SPEED, Speed, all_steps_seconds, recompute_seconds, step_seconds
from sdcli.plan.ways import SCRATCHES, way_of_steps
from sdcli.units import GIB, MIB, format_size

MARGIN_BYTES = 16 * MIB
"""Kept free under the ceiling: the heap's gaps vary by as much from run to run."""

UNCERTAIN_TIMES, UNCERTAIN_SHARE, UNCERTAIN_PEAK_SHARE = 1.85, 0.05, 0.15
"""Where freed memory goes back after a stage only, the heap's gaps differ between runs by so many times what is alive.
A ceiling that this is a good share of, or without one a peak, deserves a prediction that is nearer."""

OFFER_BYTES = 16 * MIB
"""Ceilings that are offered are multiples of this: the baseline itself differs by a few MiB from run to run."""

SMALL_SCRATCH = "a small attention scratch"
IN_MEMORY = "the model lies on a RAM disk, where mapped pages are counted as memory: each is let go when it was read"
NOT_LOADED = "all of the denoiser would fit, but so few steps do not pay for loading it"
BY_THE_SLICE = "the denoiser's weights are used where they lie in the model's file, a slice at a time"
FRESH = "a worker of its own decodes, where nothing of the denoiser is left"

GIVE_BACK: dict[GiveBack, str] = {
    "stage": "",
    "block": "freed memory goes back to the system after each level of the denoiser",
    "piece": "freed memory goes back to the system after each piece of the denoiser",
}

WORTH_MAKING_BYTES = GIB
"""Weights that take a second to load, or longer: of as many a copy is made though they would fit."""

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
    keeps_copy: bool = True
    """Whether the system has memory for all of the prepared copy, as pages of a file, beside what a run takes."""
    remainder: Remainder = WITH_AVX512
    """What this kind of processor takes besides weights and bytes that are alive."""
    remainder_from: Source = "shipped"
    in_memory: bool = False
    """Whether the model lies on a RAM disk."""
    margin_bytes: int = MARGIN_BYTES
    """Kept free between the prediction and the ceiling."""
    kernel_limit_bytes: int | None = None
    """Of the control group that the ceiling is held to, if there is one."""
    note: str = ""
    """What makes every plan larger than it need be, and what to do about it: a reason of each, and of a refusal."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, the peaks predicted for it, and about how long a denoise step will take."""

    plan: Plan
    needs: tuple[StageNeed, ...]
    step_s: float
    baseline_bytes: int = 0
    """What the needs begin at."""
    first_step_s: float | None = None
    """Of a first round at a smaller size, where there are two: `step_s` is then the second one's."""

    @property
    def peak_bytes(self) -> int:
        """The highest of the stages' peaks."""
        return max(need.peak_bytes for need in self.needs)

    def because(self, reason: str) -> Planned:
        """The same with one more reason, unless it is empty."""
        return replace(self, plan=replace(self.plan, reasons=(*self.plan.reasons, reason))) if reason else self


def make_plan(subject: Subject, limit_bytes: int | None, baseline_bytes: int, means: Means = Means()) -> Planned:
    """The fastest plan whose every stage stays under the ceiling.

    Raises WillNotFit naming the stage, its need, and the nearest ceiling and size that would do.
    """
    best = fastest_plan(subject, limit_bytes, baseline_bytes, means)
    if best is None:
        offer = _Planner(subject, limit_bytes, baseline_bytes, means).what_would_fit()
        raise WillNotFit("; ".join(filter(None, (offer, means.note))))
    return best


def fastest_plan(
    subject: Subject, limit_bytes: int | None, baseline_bytes: int, means: Means = Means()
) -> Planned | None:
    """The same; None where nothing fits, without a look at what would."""
    best = _Planner(subject, limit_bytes, baseline_bytes, means).fastest()
    return None if best is None else best.because(means.note)


def smallest_limit_bytes(subject: Subject, baseline_bytes: int, means: Means = Means()) -> int:
    """A ceiling under which the request runs: the least, rounded up to whole steps of OFFER_BYTES."""
    return _Planner(subject, None, baseline_bytes, means).least_limit_bytes()


def smallest_plan(subject: Subject, baseline_bytes: int, means: Means = Means()) -> Planned:
    """The plan that needs least, whatever the ceiling is."""
    return _Planner(subject, None, baseline_bytes, means).smallest()


class _Planner:
    def __init__(self, subject: Subject, limit_bytes: int | None, baseline_bytes: int, means: Means) -> None:
        self._subject, self._limit, self._baseline, self._means = subject, limit_bytes, baseline_bytes, means

    def fastest(self) -> Planned | None:
        """The one with the quickest steps, and of the other stages the quickest way of each that fits."""
        ways = self._quickest_ways()
        if ways is None:
            return None
        repeated = [stage for stage in self._subject.stages if stage.times == "steps"]
        steps = [
            plan
            for plan in self._candidates()
            if all(self._fits(plan, stage) for stage in repeated) and self._is_certain(plan)
        ]
        if not steps:
            return None
        best, quickest = (
            min(steps, key=lambda plan: all_steps_seconds(self._subject, plan, self._means.speed, loads))
            for loads in (self._may_go_unloaded, False)
        )
        plan = replace(best, ways=ways.ways, fresh_decode=ways.fresh_decode, reasons=(*best.reasons, *ways.reasons))
        if best.residency != "resident" and quickest.residency == "resident":
            plan = replace(plan, reasons=(*plan.reasons, NOT_LOADED))
        if self._means.in_memory:
            plan = replace(plan, reasons=(*plan.reasons, IN_MEMORY))
        *first, last = (step_seconds(part, plan, self._means.speed) for part in self._subject.rounds)
        return Planned(plan, self._needs(plan), last, self._baseline, first[0] if first else None)

    def smallest(self) -> Planned:
        """See `smallest_plan`."""
        plan = self._smallest()
        seconds = step_seconds(self._subject, plan, self._means.speed)
        return Planned(plan, self._needs(plan), seconds, self._baseline)

    def least_limit_bytes(self) -> int:
        """See `smallest_limit_bytes`."""
        peak = max(need.peak_bytes for need in self._needs(self._smallest()))
        return -(-(peak + self._means.margin_bytes) // OFFER_BYTES) * OFFER_BYTES

    def what_would_fit(self) -> str:
        """One line: which stage needs what, and the nearest ceiling and size that would do."""
        request, limit = self._subject.request, self._limit or 0
        ceiling = format_size(limit)
        options = options_for(self.least_limit_bytes(), limit, self._means.kernel_limit_bytes)
        if limit <= self._baseline:
            return (
                f"will not fit: Python and torch alone take {format_size(self._baseline)}, the ceiling is {ceiling};"
                f" give {options} or more"
            )
        worst, largest = max(self._needs(self._smallest()), key=lambda need: need.peak_bytes), request.rounds[-1]
        message = (
            f"will not fit: the stage {worst.name} needs {format_size(worst.peak_bytes + self._means.margin_bytes)}"
            f" at {largest.width}x{largest.height}, the ceiling is {ceiling}; give {options}"
        )
        smaller = self._largest_that_fits(limit)
        return message + (f" or -W {smaller[0]} -H {smaller[1]}" if smaller else "; no smaller picture fits either")

    def _largest_that_fits(self, limit_bytes: int) -> tuple[int, int] | None:
        """The largest picture of about the same shape under the ceiling."""
        request = self._subject.request
        longer = max(request.width, request.height)
        for side in SIZES:
            width, height = (max(64, round(s * side / longer / 64) * 64) for s in (request.width, request.height))
            if side < longer:
                smaller = replace(self._subject, request=_sized(request, width, height))
                if smallest_limit_bytes(smaller, self._baseline, self._means) <= limit_bytes:
                    return width, height
        return None

    def _needs(self, plan: Plan) -> tuple[StageNeed, ...]:
        return tuple(self._need(plan, stage) for stage in self._subject.stages)

    def _need(self, plan: Plan, stage: Stage) -> StageNeed:
        return stage_need(self._subject, plan, stage, self._baseline, self._means.remainder, self._means.making)

    def _fits(self, plan: Plan, stage: Stage) -> bool:
        if self._limit is None:
            return True
        return self._need(plan, stage).peak_bytes + self._means.margin_bytes <= self._limit

    def _step_bytes(self, plan: Plan) -> int:
        """The most that a step takes besides weights that stay."""
        means, first = self._means, self._subject.rounds[0]
        steps = [step_bytes(part, plan, means.remainder, means.making) for part in self._subject.rounds]
        return max([steps[0], *(one + left_by(first, plan, means.remainder) for one in steps[1:])])

    def _is_certain(self, plan: Plan) -> bool:
        """Whether the prediction for this plan is near enough for the ceiling."""
        if not self._means.heap or plan.give_back != "stage":
            return True
        alive = max(way.live_bytes for way in self._subject.counts[self._subject.steps.name].ways.values())
        if self._limit is not None:
            return UNCERTAIN_TIMES * alive <= UNCERTAIN_SHARE * self._limit
        return UNCERTAIN_TIMES * alive <= UNCERTAIN_PEAK_SHARE * self._need(plan, self._subject.steps).peak_bytes

    def _quickest_ways(self) -> Plan | None:
        """The other stages' ways as a plan of nothing else: of each the quickest that fits, None if one has none."""
        plan = replace(_nothing(), attention_scratch_bytes=0 if self._means.fused else SCRATCHES[0])
        for stage in self._subject.stages:
            if stage.times != "steps":
                fitting = (option for option in self._options(plan, stage) if self._fits(option, stage))
                chosen = next(fitting, None)
                if chosen is None:
                    return None
                plan = chosen
        return plan

    def _options(self, plan: Plan, stage: Stage) -> list[Plan]:
        """The plan with each way of a stage, and where that may help with a worker of its own: the quickest first."""
        fresh = (False, True) if stage.times == "pictures" and self._may_be_fresh() else (False,)
        options = []
        for way, own in product(stage.ways or {"": ""}, fresh):
            seconds = recompute_seconds(self._subject, stage, way, self._means.speed) + (NEW_WORKER_S if own else 0)
            words = (stage.ways.get(way, ""), FRESH if own else "")
            reasons = (*plan.reasons, *(word for word in words if word and word not in plan.reasons))
            ways = {**plan.ways, **({stage.name: way} if way else {})}
            options.append((seconds, replace(plan, ways=ways, fresh_decode=plan.fresh_decode or own, reasons=reasons)))
        return [option for _, option in sorted(options, key=lambda option: option[0])]

    def _may_be_fresh(self) -> bool:
        return self._means.heap and self._subject.request.strength != 0

    def _candidates(self) -> Iterator[Plan]:
        """Every plan of the steps that may be the fastest: all weights resident, or as much as fits, by each tactic."""
        everything = self._subject.weights.matrices_bytes
        if not everything:  # no share of it kept in memory would save anything
            yield from (replace(tactic, reasons=(BY_THE_SLICE, *tactic.reasons)) for tactic in self._tactics())
            return
        size = format_size(everything)
        source = "a prepared copy in the cache" if self._means.prepared else "the model's file"
        for tactic in self._tactics():
            reason = f"the denoiser's {size} stay in memory across steps"
            yield replace(tactic, residency="resident", resident_bytes=everything, reasons=(reason, *tactic.reasons))
            if self._limit is None and not self._may_go_unloaded:
                continue
            streamed = replace(tactic, prepared=self._means.prepared)
            share = min(self._room_for_weights(streamed), everything)
            if 0 < share < everything:
                reason = f"{format_size(share)} of the denoiser's {size} stay in memory, the rest streams from {source}"
                yield replace(streamed, residency="partial", resident_bytes=share, reasons=(reason, *tactic.reasons))
            yield replace(streamed, reasons=(f"the denoiser's {size} stream from {source}", *tactic.reasons))

    @property
    def _may_go_unloaded(self) -> bool:
        """Whether few steps may use a prepared copy where it lies though all of it would fit: one that is there, or is
        worth making since the next runs find it; and that the system can keep in memory between steps."""
        worth_making = self._subject.weights.matrices_bytes >= WORTH_MAKING_BYTES
        return self._means.prepared and self._means.keeps_copy and (worth_making or not self._means.making)

    def _room_for_weights(self, streamed: Plan) -> int:
        """Bytes of weights that may stay beside what a step takes."""
        if self._limit is None:
            return self._subject.weights.matrices_bytes
        room = self._limit - self._means.margin_bytes - self._baseline - self._step_bytes(streamed)
        return int(room / self._means.remainder.padding)

    def _tactics(self) -> Sequence[Plan]:
        """Ways to spend less on all but the weights, as plans that keep no weights yet: the smallest comes last."""
        passes: list[tuple[Guidance, str]] = [("batched", "no guidance: one pass a step")]
        if self._subject.request.guided:
            passes = [("sequential", "guidance one pass after another: half the activations")]
            if self._means.batches:
                passes.insert(0, ("batched", "guidance batched: one pass a step"))
        scratches = ((0, ""),) if self._means.fused else tuple(zip(SCRATCHES, ("", SMALL_SCRATCH), strict=True))
        giving: tuple[GiveBack, ...] = tuple(GIVE_BACK) if self._means.heap else ("stage",)
        plans = []
        for (guidance, why), give_back, (scratch_bytes, small) in product(passes, giving, scratches):
            reasons = (why, *filter(None, (small, GIVE_BACK[give_back])))
            plans.append(
                replace(_nothing(), guidance=guidance, attention_scratch_bytes=scratch_bytes, give_back=give_back)
            )
            plans[-1] = replace(plans[-1], reasons=reasons)
        known = self._subject.counts[self._subject.steps.name].ways
        return [
            plan
            for plan in plans
            if way_of_steps(samples_at_a_time(self._subject.request, plan), plan.attention_scratch_bytes) in known
        ]

    def _smallest(self) -> Plan:
        """What needs least in every stage: nothing resident, or of a small network all, which needs no copy."""
        everything, tactic = self._subject.weights.matrices_bytes, self._tactics()[-1]
        streamed = replace(tactic, prepared=self._means.prepared)
        resident = replace(tactic, residency="resident", resident_bytes=everything) if everything else streamed
        plan = min(streamed, resident, key=lambda plan: self._need(plan, self._subject.steps).peak_bytes)
        for stage in self._subject.stages:
            if stage.times != "steps":
                options = self._options(plan, stage)
                plan = min(options, key=lambda option: self._need(option, stage).peak_bytes)
        return plan


def _sized(request: Request, width: int, height: int) -> Request:
    """The request for a picture of this size, enlarged as much."""
    larger = request.hires
    if larger is not None:
        sides = larger.width * width / request.width, larger.height * height / request.height
        wide, tall = (max(64, round(side / 64) * 64) for side in sides)
        larger = replace(larger, width=wide, height=tall)
    return replace(request, width=width, height=height, hires=larger)


def _nothing() -> Plan:
    """A plan that keeps nothing."""
    return Plan("streamed", 0, "batched", 0, ())
