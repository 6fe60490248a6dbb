"""How long a denoise step will take: arithmetic over counts of a dry run, and two speeds of the machine.

Multiplications over how many it does a second, and bytes of streamed weights over how many it reads, casts and lays
out a second. The speeds are corrected by every run (plan/speeds.py). No torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sdcli.domain import DTYPE_BYTES, GiveBack, Plan
from sdcli.families.contract import Stage
from sdcli.plan.bytes import Subject

SEQUENTIAL = 1.06
"""Guidance one pass after another takes so many times the time of both at once: smaller matrices."""

GIVING_BACK: dict[GiveBack, float] = {"stage": 1.0, "block": 1.04, "piece": 1.1}
"""Giving memory back takes so many times the time: what is needed again comes as new pages."""

TELLING_FLOPS = 2e11
"""A step of so many operations or more tells how fast the machine is."""

MOST_BYTES = 32e9
"""A second, that streaming is ever believed to reach: what seems faster is arithmetic that was faster than thought."""

LOADING_BYTES = 1.2e9
"""A second, that go from a prepared copy into memory that stays: pages that are new to a process take longest."""

NEW_WORKER_S = 2.5
"""Until a new worker has imported what it needs."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Floating-point operations a second, and bytes of streamed weights a second, in the arithmetic's type.

    Weights of the model's own file are cast and laid out; those of a prepared copy are used where they lie.
    """

    flops: float = 1.0e12
    cast_bytes: float = 0.7e9
    prepared_bytes: float = 16e9

    def stream_bytes(self, plan: Plan) -> float:
        """A second, from where the plan streams."""
        return self.prepared_bytes if plan.prepared else self.cast_bytes


TYPICAL_SPEED = Speed()
"""Two cores of a server's processor with a matrix unit, in bf16."""


def step_seconds(subject: Subject, plan: Plan, speed: Speed) -> float:
    """One denoise step."""
    streaming = streamed_bytes(subject, plan) / speed.stream_bytes(plan)
    return _work(subject, plan) / speed.flops + streaming


def all_steps_seconds(subject: Subject, plan: Plan, speed: Speed, copied: bool) -> float:
    """The steps of all rounds and pictures. With weights `copied` before, those that stay are loaded first.

    Without a copy they are laid out whether they stay or not, and that is not counted.
    """
    pictures = subject.request.count
    loading = loading_seconds(subject, plan, speed, copied) if copied else 0.0
    return loading + sum(pictures * part.request.steps_run * step_seconds(part, plan, speed) for part in subject.rounds)


def recompute_seconds(subject: Subject, stage: Stage, way: str, speed: Speed) -> float:
    """What a way of a stage that saves memory costs a run of all pictures, over its quickest way."""
    ways = subject.counts[stage.name].ways
    times = 1 if stage.times == "once" else subject.request.count
    return times * (ways[way].flops - min(one.flops for one in ways.values())) / speed.flops


def loading_seconds(subject: Subject, plan: Plan, speed: Speed, copied: bool) -> float:
    """Until the weights that stay lie in memory, or all of them in a prepared copy that is not there yet."""
    if plan.prepared and not copied:
        return subject.weights.matrices_bytes / speed.cast_bytes
    resident_bytes = min(plan.resident_bytes, subject.weights.matrices_bytes)
    return resident_bytes / (LOADING_BYTES if copied else speed.cast_bytes)


def picture_seconds(
    subject: Subject,
    plan: Plan,
    speed: Speed,
    step_s: float,
    first_step_s: float | None,
    disk_bytes: float | None,
    copied: bool,
) -> float:
    """All pictures of a request, from the start of a worker: `disk_bytes` a second are read where that is to be waited
    for, and the prepared copy is `copied` or not. Steps are counted as one call of the denoiser each."""
    seconds = NEW_WORKER_S * (2 if plan.fresh_decode else 1) + loading_seconds(subject, plan, speed, copied)
    paces = (first_step_s, step_s) if first_step_s is not None else (step_s,)
    pictures = subject.request.count
    for part, pace in zip(subject.rounds, paces, strict=True):
        seconds += pictures * part.request.steps_run * pace
    for stage in subject.stages:
        if stage.times == "steps":
            continue
        count = subject.counts[stage.name]
        flops = count.ways[plan.ways.get(stage.name, next(iter(count.ways)))].flops
        arithmetic_s = (1 if stage.times == "once" else pictures) * flops / speed.flops
        stored_bytes = DTYPE_BYTES["fp16"] * sum(use.numel for use in count.weights if use.use != "table")
        seconds += max(arithmetic_s, stored_bytes / disk_bytes if disk_bytes else 0.0)
    return seconds


def _work(subject: Subject, plan: Plan) -> float:
    """Operations of a step, and as many more as the plan costs time."""
    slower = SEQUENTIAL if subject.request.guided and plan.guidance == "sequential" else 1.0
    return slower * GIVING_BACK[plan.give_back] * step_flops(subject)


def streamed_bytes(subject: Subject, plan: Plan) -> int:
    """Bytes of weights that a step streams, in the arithmetic's type: twice in two passes."""
    passes = 2 if subject.request.guided and plan.guidance == "sequential" else 1
    return passes * max(0, subject.weights.matrices_bytes - plan.resident_bytes)


def step_flops(subject: Subject) -> float:
    """Multiplications and additions of one step, all its samples."""
    return max(way.flops for way in subject.counts[subject.steps.name].ways.values())


def learned(before: Speed, subject: Subject, plan: Plan, seconds: float) -> Speed:
    """The speeds after a run whose steps took `seconds`: the one that it tells of moves half-way to what it was.

    Small models say nothing: their steps go by in other things than arithmetic. A plan that streams tells of the
    streaming, which a cold page cache makes ten times slower than a warm one; of arithmetic only if all of it took less
    than the arithmetic should have.
    """
    work, streaming = _work(subject, plan), streamed_bytes(subject, plan)
    if step_flops(subject) < TELLING_FLOPS or seconds <= 0:
        return before
    left = seconds - work / before.flops
    if not streaming or left <= 0:
        return replace(before, flops=(before.flops + work / seconds) / 2)
    rate = (before.stream_bytes(plan) + min(streaming / left, MOST_BYTES)) / 2
    return replace(before, prepared_bytes=rate) if plan.prepared else replace(before, cast_bytes=rate)
