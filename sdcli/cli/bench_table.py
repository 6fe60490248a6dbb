"""A bench for people: a row a case with what it took, then a row a stage. It is readable in 100 columns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from sdcli.app.benching import Ran, by_case, spread
from sdcli.app.record import StageRecord, Task
from sdcli.units import MIB, format_size

HEADER = (
    "ceiling",
    "outcome",
    "predicted",
    "peak",
    "RSS",
    "group",
    "first s",
    "s/step (spread)",
    "read",
    "total s",
)
STAGES = ("ceiling", "stage", "weights", "load s", "run s", "predicted", "peak")

CAPTION = "sizes in MiB: peak is of the footprint, group of the control group, read is what a step reads"


def table(runs: Sequence[Ran]) -> list[str]:
    """All lines. Several jobs have a table each, under a line that names the job."""
    jobs: dict[str, list[list[Ran]]] = {}
    for case in by_case(runs):
        jobs.setdefault(job_of(case[0].task), []).append(case)
    lines: list[str] = []
    for job, cases in jobs.items():
        lines += [job] if len(jobs) > 1 else []
        lines += aligned([HEADER, *map(_row, cases)])
    lines.append(CAPTION)
    for job, cases in jobs.items():
        rows = [row for case in cases for row in _stages(case)]
        if rows:
            lines += ["", *([job] if len(jobs) > 1 else []), *aligned([STAGES, *rows])]
    return lines


def job_of(task: Task) -> str:
    """What is drawn with what, without the ceiling."""
    width, height = task.pictures_size
    steps = f"{task.request.steps} steps" + ("" if task.request.strength is None else " from a picture")
    return f"{task.model.ref}, {width}x{height}, {steps}, {task.device} in {task.dtype}"


def ceiling_of(task: Task) -> str:
    """In one cell."""
    limit_bytes = task.ceiling.limit_bytes
    return format_size(limit_bytes) if limit_bytes is not None else "none"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, numbers to the right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numbers = [at > 0 and any(cell[:1].isdecimal() for cell in column[1:]) for at, column in enumerate(columns)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in rows
    ]


def _row(case: Sequence[Ran]) -> tuple[str, ...]:
    """What a case took: medians of times over its runs, and the highest peaks."""
    first, records = case[0], [ran.record for ran in case]
    planned = next((record.planned for record in records if record.planned is not None), None)
    times = [seconds for ran in case for seconds in ran.steady_s]
    firsts = [record.steps[0].seconds for record in records if record.steps]
    read = [step.bytes_read for record in records for step in record.steps]
    return (
        ceiling_of(first.task),
        " ".join(dict.fromkeys(ran.outcome for ran in case)),
        _mib(planned.peak_bytes if planned else 0),
        _mib(max(record.peak_bytes for record in records)),
        _mib(max(record.peak_rss_bytes for record in records)),
        _mib(max(record.cgroup_peak_bytes or 0 for record in records)),
        f"{statistics.median(firsts):.2f}" if firsts else "-",
        "{:.2f} ({:.2f}-{:.2f})".format(*spread(times)) if times else "-",
        f"{statistics.median(read) / MIB:.0f}" if read else "-",
        f"{statistics.median(record.total_s for record in records):.1f}",
    )


def _stages(case: Sequence[Ran]) -> list[tuple[str, ...]]:
    """A row a stage, over the runs that came to it."""
    stages: dict[str, list[StageRecord]] = {}
    for ran in case:
        for stage in ran.record.stages:
            stages.setdefault(stage.name, []).append(stage)
    planned = case[0].record.planned
    repeating = {step for step in stages if step.endswith("denoise")}
    return [
        (
            ceiling_of(case[0].task) if number == 0 else "",
            name,
            planned.plan.residency if planned and name in repeating else "",
            f"{statistics.median(stage.load_s for stage in same):.1f}",
            f"{statistics.median(stage.run_s for stage in same):.1f}",
            _mib(max(stage.predicted_peak_bytes for stage in same)),
            _mib(max(stage.peak_bytes for stage in same)),
        )
        for number, (name, same) in enumerate(stages.items())
    ]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.0f}" if size_bytes else "-"
