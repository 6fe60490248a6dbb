"""What a task would take, from headers and from what earlier runs measured: no worker, no weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from sdcli.errors import WillNotFit
from sdcli.host.baseline import TYPICAL_BYTES, remembered_baseline
from sdcli.host.record import Task
from sdcli.host.run import means_of
from sdcli.memory.planner import Planned, make_plan, smallest_limit_bytes

SCHEMA = "sdcli.plan/1"


@dataclass(frozen=True, slots=True)
class Forecast:
    """The plan, or why there is none. `smallest_limit_bytes` is the least ceiling under which the task runs."""

    task: Task
    baseline_bytes: int
    baseline_measured: bool
    planned: Planned | None
    refusal: WillNotFit | None
    smallest_limit_bytes: int


def forecast(task: Task) -> Forecast:
    """Plan a task as its run will."""
    measured = remembered_baseline(task.device)
    baseline = measured or TYPICAL_BYTES
    planned, refusal, means = None, None, means_of(task)
    try:
        planned = make_plan(task.model, task.request, task.dtype, task.ceiling.limit_bytes, baseline, means)
    except WillNotFit as error:
        refusal = error
    least = smallest_limit_bytes(task.model, task.request, task.dtype, baseline, means)
    return Forecast(task, baseline, measured is not None, planned, refusal, least)


def forecast_report(task: Task, result: Forecast) -> dict[str, Any]:
    """The JSON report of `sdcli plan`, as the contract lays it down. Plan and stages are those of a run's report."""
    planned = result.planned
    return {
        "schema": SCHEMA,
        "fits": planned is not None,
        "model": {"ref": task.model.ref, "family": task.model.family, "sha256": task.model.sha256},
        "device": task.device,
        "dtype": task.dtype,
        "width": task.request.width,
        "height": task.request.height,
        "plan": dataclasses.asdict(planned.plan) if planned else None,
        "memory": {
            "limit_bytes": task.ceiling.limit_bytes,
            "metric": "footprint",
            "baseline_bytes": result.baseline_bytes,
            "predicted_peak_bytes": planned.peak_bytes if planned else None,
        },
        "stages": [
            {"name": need.name, "predicted_peak_bytes": need.peak_bytes} for need in (planned.needs if planned else ())
        ],
        "step_s": planned.step_s if planned else None,
        "smallest_limit_bytes": result.smallest_limit_bytes,
    }
