"""What a task would take, from counts and from what earlier runs measured: no weights, and no arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdcli.app.counts import Uncounted
from sdcli.app.means import Prospect, known_baseline, typical_baseline
from sdcli.app.reading import Reads, reads_of, reads_table
from sdcli.app.record import Task
from sdcli.app.report import model_table, plan_table
from sdcli.errors import WillNotFit
from sdcli.families.registry import family_of
from sdcli.host.worker import Worker
from sdcli.messages import Counted, Start
from sdcli.plan.baselines import UNCERTAIN_BYTES
from sdcli.plan.planner import Planned
from sdcli.plan.remainders import Source
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


def forecast(task: Task) -> Forecast:
    """Plan a task as its run will. What nobody has counted yet a worker counts."""
    prospect = Prospect(task)
    while True:
        try:
            return _forecast(prospect)
        except Uncounted as lack:
            _have_counted(prospect, lack)


def _have_counted(prospect: Prospect, lack: Uncounted) -> None:
    task, book = prospect.task, prospect.book
    with Worker(family_of(task.model).network, task.debug) as worker:
        worker.send(Start(task.device, task.ceiling.limit_bytes))
        worker.send(book.ask(lack))
        for message in worker.messages():
            if isinstance(message, Counted) and not book.learn(message.payload):
                return
        raise worker.end()


def _forecast(prospect: Prospect) -> Forecast:
    task = prospect.task
    measured = known_baseline(task)
    baseline = measured or typical_baseline(task)
    planned, refusal, limit = None, None, task.ceiling.limit_bytes
    limits = [prospect.least_limit_bytes(baseline + unknown) for unknown in (-UNCERTAIN_BYTES, 0, UNCERTAIN_BYTES)]
    unsure = measured is None and limit is not None and limits[0] <= limit < limits[-1]
    doubt = f"torch's {format_size(baseline)} are typical, not measured: a first run may" if unsure else ""
    try:
        planned = prospect.plan(baseline)
        planned = planned.because(doubt and f"{doubt} need more")
    except WillNotFit as error:
        refusal = WillNotFit(f"{error}; {doubt} fit") if doubt else error
    reads = reads_of(prospect, planned) if planned else None
    known = measured is not None
    return Forecast(task, baseline, known, planned, refusal, unsure, limits[1], prospect.remainder_from, reads)


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
        **({"first_step_s": planned.first_step_s} if planned and planned.first_step_s is not None else {}),
        "reads": reads_table(result.reads),
        "smallest_limit_bytes": result.smallest_limit_bytes,
    }
