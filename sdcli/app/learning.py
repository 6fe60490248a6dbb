"""What a run teaches: how fast the machine computes, how long such runs take, and what a plan left uncounted."""

from __future__ import annotations

import statistics
from dataclasses import replace

from sdcli.app.kinds import kind_of_run
from sdcli.app.known import remainder_key, shipped_remainder, speed_of
from sdcli.app.means import Prospect
from sdcli.app.record import RunRecord, StageRecord, Task
from sdcli.domain import Plan, StageName
from sdcli.plan.bytes import way_of
from sdcli.plan.paces import BELIEVED_S, Pace, remember_pace
from sdcli.plan.planner import Planned
from sdcli.plan.remainders import Seen, remember_remainder
from sdcli.plan.seconds import learned, loading_seconds, step_seconds
from sdcli.plan.speeds import remember_speed


def learn_flops(task: Task, flops: float | None) -> None:
    """Remember what a worker found out, if it was asked."""
    if flops is not None:
        remember_speed(task.device, task.dtype, replace(speed_of(task), flops=flops), task.threads)


def learn_from(record: RunRecord, prospect: Prospect) -> None:
    """Correct the speeds and the remainder that plans go by, and remember how long such a run takes.

    The first step compiles kernels, and tells of them: where there is no other, the pace is learned, and that the
    machine is faster than was thought if it is.
    """
    task, planned, last = record.task, record.planned, len(record.task.request.rounds) - 1
    seconds = [step.seconds for step in record.steps if step.round == last]
    if planned is None or not seconds or record.degraded or set(record.denoised_in.values()) != {task.dtype}:
        return
    took, speed = statistics.median(seconds[1:] or seconds), speed_of(task)
    if not last:
        _learn_pace(record, prospect, planned.plan, took)
    subject, is_only_one = prospect.subject.of_round(last), len(seconds) == 1
    if is_only_one and took >= step_seconds(subject, planned.plan, speed):
        return
    now = learned(speed, subject, planned.plan, took)
    if now != speed:
        remember_speed(task.device, task.dtype, now, task.threads)
    if is_only_one or last:  # a second round finds in the heap what the first one left
        return
    steps = _steps_of(record, prospect)
    if steps is not None and task.device == "cpu":
        _learn_remainder(prospect, planned, record.baseline_bytes, steps.peak_bytes)


def learn_of_crossing(record: RunRecord, prospect: Prospect, stage: StageName, footprint_bytes: int | None) -> None:
    """Correct the remainder where the steps took more than was predicted: at least so much."""
    if record.planned is None or footprint_bytes is None or prospect.task.device != "cpu":
        return
    if stage == prospect.subject.steps.name:
        _learn_remainder(prospect, record.planned, record.baseline_bytes, footprint_bytes)


def _learn_pace(record: RunRecord, prospect: Prospect, plan: Plan, step_s: float) -> None:
    """Remember the seconds of a run that drew all its pictures, and decoded them together at its end.

    A prepared copy is made once: the next run of the kind finds it.
    """
    request, decode_s = record.task.request, record.stages[-1].run_s
    if len(record.steps) != request.count * request.steps_run:
        return  # it went on with another's
    once_s, steps = record.total_s - len(record.steps) * step_s - decode_s, _steps_of(record, prospect)
    if steps is not None and plan.prepared and prospect.was_copied_meanwhile:
        once_s -= max(0.0, steps.load_s - loading_seconds(prospect.subject, plan, speed_of(record.task), copied=True))
    remember_pace(kind_of_run(record.task, plan), Pace(step_s, decode_s / request.count, max(once_s, BELIEVED_S[0])))


def _steps_of(record: RunRecord, prospect: Prospect) -> StageRecord | None:
    """The stage of the steps, if there was one."""
    return next((stage for stage in record.stages if stage.name == prospect.subject.steps.name), None)


def _learn_remainder(prospect: Prospect, planned: Planned, baseline_bytes: int, peak_bytes: int) -> None:
    """Remember what the denoise stage took besides what was counted, over the baseline that was measured.

    Not where memory goes back at the stage's end only: then it differs from run to run.
    """
    shipped, measured = shipped_remainder(prospect.task)
    if planned.plan.give_back == "stage" and measured:
        return
    subject = prospect.subject
    need = next(need for need in planned.needs if need.name == subject.steps.name)
    way = way_of(subject, planned.plan)
    expected = shipped.steps(way, planned.plan.give_back, subject.weights.largest_bytes, subject.by_slices)
    counted = need.peak_bytes - need.remainder_bytes - planned.baseline_bytes
    remember_remainder(
        remainder_key(prospect.task), Seen((peak_bytes - baseline_bytes - counted) / expected, way.heap_bytes)
    )
