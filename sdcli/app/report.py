"""The JSON report of a run, as the contract lays it down: schema sdcli.report/1."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from sdcli import __version__
from sdcli.app.record import RunRecord
from sdcli.host.watchdog import PERIOD_S

SCHEMA = "sdcli.report/1"


def report(record: RunRecord) -> dict[str, Any]:
    """What scripts get. Keys and their meaning are the contract's."""
    task, planned = record.task, record.planned
    memory: dict[str, Any] = {
        "limit_bytes": task.ceiling.limit_bytes,
        "metric": "footprint",
        "baseline_bytes": record.baseline_bytes,
        "predicted_peak_bytes": planned.peak_bytes if planned else None,
        "peak_bytes": record.peak_bytes,
        "samples": record.samples,
        "period_ms": PERIOD_S * 1000,
    }
    if task.device == "cuda":
        memory["host_peak_bytes"] = record.host_peak_bytes
    return {
        "schema": SCHEMA,
        "images": [
            {"path": path, "seed": picture.seed, "width": picture.width, "height": picture.height}
            for path, picture in record.pictures
        ],
        "model": {"ref": task.model.ref, "family": task.model.family, "sha256": task.model.sha256},
        "device": task.device,
        "dtype": task.dtype,
        "memory": memory,
        "plan": dataclasses.asdict(planned.plan) if planned else None,
        "stages": [dataclasses.asdict(stage) for stage in record.stages],
        "steps": _steps(record),
        "events": [{"step": step, "what": what} for step, what in record.events],
        "total_s": record.total_s,
        "sdcli_version": __version__,
        "torch_version": record.torch_version,
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
