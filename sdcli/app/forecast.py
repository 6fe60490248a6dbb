"""What a task would take, from counts and from what earlier runs measured: no weights, and no arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sdcli.app.counting import Counting
from sdcli.app.counts import Uncounted
from sdcli.app.known import known_baseline, typical_baseline
from sdcli.app.means import Prospect
from sdcli.app.picture import Seconds, seconds_of
from sdcli.app.reading import Reads, reads_of, reads_table
from sdcli.app.record import Task
from sdcli.app.report import model_table, plan_table
from sdcli.errors import WillNotFit
from sdcli.plan.baselines import CPU_BUILD_BYTES, UNCERTAIN_BYTES
from sdcli.plan.planner import Planned
from sdcli.plan.remainders import Source
from sdcli.settings import Profile
from sdcli.units import format_size

SCHEMA = "sdcli.plan/1"


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan, or why there is none. `smallest_limit_bytes` is the least ceiling under which the task runs."""

    task: Task
    baseline_bytes: int
    baseline_measured: bool
    planned: Planned | None
    refusal: WillNotFit | None
    unsure: bool
    """Whether the ceiling is so near to the least that a first run must measure what is typical here."""
    smallest_limit_bytes: int
    remainder_from: Source
    reads: Reads | None
    seconds: Seconds | None
    """About how long it takes, if it fits."""
    posed: Profile | None = None
    """The other machine that it is for."""


def forecast(task: Task, posed: Profile | None = None) -> Forecast:
    """Plan a task as its run will, or as one on another machine would. What nobody has counted yet a worker counts."""
    prospect = Prospect(task, posed)
    with Counting(task.debug) as counting:
        while True:
            try:
                return forecast_of(prospect)
            except Uncounted as lack:
                counting.count(prospect, lack)


def forecast_of(prospect: Prospect, offers: bool = True) -> Forecast:
    """The same. Raises Uncounted where something must be counted first: without `offers` nothing of other sizes, and
    no refusal is worded."""
    task, posed = prospect.task, prospect.posed
    measured = known_baseline(task) if posed is None else None
    baseline = measured or (typical_baseline(task) if posed is None else CPU_BUILD_BYTES)
    planned, refusal, limit = None, None, task.ceiling.limit_bytes
    limits = [prospect.least_limit_bytes(baseline + unknown) for unknown in (-UNCERTAIN_BYTES, 0, UNCERTAIN_BYTES)]
    unsure = measured is None and limit is not None and limits[0] <= limit < limits[-1]
    doubt = f"torch's {format_size(baseline)} are typical, not measured: a first run may" if unsure else ""
    try:
        planned = prospect.plan(baseline) if offers else prospect.plan_that_fits(baseline)
        planned = planned and planned.because(doubt and f"{doubt} need more")
    except WillNotFit as error:
        refusal = WillNotFit(f"{error}; {doubt} fit") if doubt else error
    reads = reads_of(prospect, planned) if planned else None
    seconds = seconds_of(prospect, planned, reads) if planned else None
    known, source = measured is not None, prospect.remainder_from
    return Forecast(task, baseline, known, planned, refusal, unsure, limits[1], source, reads, seconds, posed)


def forecast_report(task: Task, result: Forecast) -> dict[str, Any]:
    """The JSON report of `sdcli plan`, as the contract lays it down. Plan and stages are those of a run's report."""
    planned = result.planned
    return {
        "schema": SCHEMA,
        "fits": planned is not None,
        "model": model_table(task.model),
        "device": task.device,
        "dtype": task.dtype,
        "width": task.request.width,
        "height": task.request.height,
        "plan": plan_table(task, planned) if planned else None,
        "memory": {
            "limit_bytes": task.ceiling.limit_bytes,
            "metric": "footprint",
            "baseline_bytes": result.baseline_bytes,
            "baseline_measured": result.baseline_measured,
            "predicted_peak_bytes": planned.peak_bytes if planned else None,
            "remainder": result.remainder_from,
        },
        "stages": [
            {"name": need.name, "predicted_peak_bytes": need.peak_bytes} for need in (planned.needs if planned else ())
        ],
        "step_s": planned.step_s if planned else None,
        "seconds": asdict(result.seconds) if result.seconds else None,
        **_posed_table(result.posed),
        **({"first_step_s": planned.first_step_s} if planned and planned.first_step_s is not None else {}),
        "reads": reads_table(result.reads),
        "smallest_limit_bytes": result.smallest_limit_bytes,
    }


def _posed_table(posed: Profile | None) -> dict[str, Any]:
    """What a plan for another machine goes by; nothing of one for this."""
    if posed is None:
        return {}
    told = asdict(posed.machine)
    return {"profile": {"name": posed.name, "about": posed.about, "limit_from": posed.limit_from, **told}}
