"""JSON of a run: its report, the plan as report and forecast tell it, and the run file."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
from typing import Any

from sdcli import __version__, machine
from sdcli.app.record import RunRecord, Task
from sdcli.domain import Model, Plan
from sdcli.families.contract import Stage
from sdcli.families.registry import family_of
from sdcli.families.rounds import stages_of
from sdcli.families.tiny.parts import TINY
from sdcli.host.watchdog import PERIOD_S
from sdcli.plan.planner import Planned

SCHEMA = "sdcli.report/1"


def report(record: RunRecord, with_series: bool = False) -> dict[str, Any]:
    """What scripts get. Keys and their meaning are the contract's. With the series it is some 20 kB longer."""
    task, planned = record.task, record.planned
    memory: dict[str, Any] = {
        "limit_bytes": task.ceiling.limit_bytes,
        "metric": "footprint",
        "baseline_bytes": record.baseline_bytes,
        "predicted_peak_bytes": planned.peak_bytes if planned else None,
        "peak_bytes": record.peak_bytes,
        "peak_rss_bytes": record.peak_rss_bytes,
        "cgroup_peak_bytes": record.cgroup_peak_bytes,
        "samples": record.samples,
        "period_ms": PERIOD_S * 1000,
    }
    if task.device == "cuda":
        memory["host_peak_bytes"] = record.host_peak_bytes
    if with_series:
        memory["series"] = [
            [round(at_s - record.began, 3), footprint_bytes, stage] for at_s, footprint_bytes, stage in record.series
        ]
    if task.ceiling.kernel_limit_bytes is not None:
        memory["kernel_limit_bytes"] = task.ceiling.kernel_limit_bytes
    return {
        "schema": SCHEMA,
        "images": [
            {"path": path, "seed": picture.seed, "width": picture.width, "height": picture.height}
            for path, picture in record.pictures
        ],
        "model": model_table(task.model),
        "device": task.device,
        "dtype": task.dtype,
        "threads": record.threads,
        "memory": memory,
        "plan": plan_table(task, planned) if planned else None,
        "stages": [dataclasses.asdict(stage) for stage in record.stages],
        "steps": _steps(record),
        "events": [{"step": step, "what": what} for step, what in record.events],
        "total_s": record.total_s,
        "sdcli_version": __version__,
        "torch_version": record.torch_version,
    }


def model_table(model: Model) -> dict[str, Any]:
    """What is drawn with."""
    table = {"ref": model.ref, "family": family_of(model).label(model), "sha256": model.sha256}
    loras = [{"file": file, "weight": weight} for file, weight in model.sources.loras]
    tiny = {"decoder": model.sources.parts[TINY.name]} if TINY.name in model.parts else {}
    return table | ({"loras": loras} if loras else {}) | tiny


def plan_table(task: Task, planned: Planned) -> dict[str, Any]:
    """How the memory is spent, over all and stage by stage."""
    stages = {stage.name: stage for stage in stages_of(task.model, task.request)}
    told = [_stage(planned.plan, stages[need.name]) for need in planned.needs]
    return dataclasses.asdict(planned.plan) | {"stages": told}


def _stage(plan: Plan, stage: Stage) -> dict[str, Any]:
    """One stage of a plan: which of its parts stay in memory, where the others stream from, which worker does it."""
    repeats = stage.times == "steps"
    return {
        "name": stage.name,
        "way": plan.guidance if repeats else plan.ways.get(stage.name, "whole"),
        "resident": dict.fromkeys(stage.lends, plan.resident_bytes if repeats else 0),
        "source": "copy" if repeats and plan.prepared else "file",
        "worker": 2 if stage.times == "pictures" and plan.fresh_decode else 1,
    }


def _steps(record: RunRecord) -> dict[str, Any]:
    """Count and medians over every step of every image."""
    if not record.steps:
        return {"count": 0, "median_s": None, "bytes_read_median": None}
    return {
        "count": len(record.steps),
        "median_s": statistics.median(step.seconds for step in record.steps),
        "bytes_read_median": int(statistics.median(step.bytes_read for step in record.steps)),
    }


def machine_table() -> dict[str, Any]:
    """What a reader needs to compare figures with those of another machine."""
    return {
        "cpu": machine.cpu_name(),
        "cores": os.cpu_count(),
        "physical_memory_bytes": machine.physical_memory_bytes(),
        "container_limit_bytes": machine.container_limit_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
