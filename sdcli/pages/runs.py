"""Runs as a page shows them: read from their reports, with nothing left to look up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdcli.errors import printable
from sdcli.plan.series import POINTS_MOST, Point, Series
from sdcli.units import GIB, MIB, format_size

POINTS_OF_ALL = 6000
"""Of all series of a page together: it is to stay light."""

CHARTS_MOST = 24
"""Runs that have a chart of their own, the first of many."""

NEAR = 1.8
"""A ceiling is drawn to scale where it is at most so many times what was needed."""

OUTCOMES = {
    "ok": "done",
    "will_not_fit": "will not fit",
    "killed": "crossed the ceiling",
    "interrupted": "interrupted",
    "failed": "failed",
}
"""In words for people."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: seconds, bytes; 0 is unknown."""

    name: str
    load_s: float
    run_s: float
    predicted_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run. `report` is its JSON; sizes in bytes, 0 or None where nothing is known."""

    report: Mapping[str, Any]
    outcome: str
    error: str
    model: str
    title: str
    on_cuda: bool
    limit_bytes: int | None
    predicted_bytes: int
    peak_bytes: int
    step_s: float | None
    total_s: float
    stages: list[Stage] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    thumbnails: list[str] = field(default_factory=list)

    @property
    def needed_bytes(self) -> int:
        """The largest of all that a chart of the footprint has to hold but the ceiling."""
        told = (0, 0) if self.on_cuda else (self.predicted_bytes, self.peak_bytes)
        return max(*told, *(point.footprint_bytes for point in self.points), 1)

    @property
    def near_limit_bytes(self) -> int | None:
        """The ceiling, if it is near enough to be drawn to scale, and one of the footprint."""
        near = self.limit_bytes is not None and self.limit_bytes <= NEAR * self.needed_bytes and not self.on_cuda
        return self.limit_bytes if near else None

    @property
    def ceiling(self) -> str:
        """In words."""
        return "none" if self.limit_bytes is None else format_ceiling(self.limit_bytes)


def format_ceiling(size_bytes: int) -> str:
    """As people write one: `600 MiB`, `2 GiB`, `1.64 GiB`."""
    return f"{size_bytes // GIB} GiB" if size_bytes % GIB == 0 else format_size(size_bytes)


def format_mib(size_bytes: float) -> str:
    """In whole MiB with thousands apart, so that a column of them can be compared: `1 998 MiB`."""
    return f"{size_bytes / MIB:,.0f}".replace(",", "\N{NO-BREAK SPACE}") + "\N{NO-BREAK SPACE}MiB"


def format_s(seconds: float) -> str:
    """Seconds, in hundredths where they are few."""
    decimals = 2 if seconds < 10 else 1 if seconds < 100 else 0
    return f"{seconds:.{decimals}f}\N{NO-BREAK SPACE}s"


def runs_of(reports: Iterable[Mapping[str, Any]]) -> list[Run]:
    """Reports of the schema sdcli.report/1 with an `outcome`, perhaps `error`, `request` and `thumbnails`."""
    told = list(reports)
    points = min(POINTS_MOST, POINTS_OF_ALL // min(max(len(told), 1), CHARTS_MOST))
    return [_run(report, points) for report in told]


def _run(report: Mapping[str, Any], points: int) -> Run:
    memory, request, model = report["memory"], report.get("request") or {}, printable(report["model"]["ref"])
    size = f"{request['width']} × {request['height']}" if request else ""
    title = " · ".join(filter(None, (model, size, f"{report['device']}, {report['dtype']}")))
    shown = {key: value for key, value in report.items() if key != "thumbnails"}
    shown["memory"] = {key: value for key, value in memory.items() if key != "series"}
    return Run(
        report=shown,
        outcome=report["outcome"],
        error=report.get("error") or "",
        model=model,
        title=title,
        on_cuda=report["device"] == "cuda",
        limit_bytes=memory["limit_bytes"],
        predicted_bytes=memory["predicted_peak_bytes"] or 0,
        peak_bytes=memory["peak_bytes"] or 0,
        step_s=report["steps"]["median_s"],
        total_s=report["total_s"],
        stages=[
            Stage(
                name=printable(one["name"]),
                load_s=one["load_s"],
                run_s=one["run_s"],
                predicted_bytes=one["predicted_peak_bytes"],
                peak_bytes=one["peak_bytes"],
            )
            for one in report["stages"]
        ],
        points=list(Series((Point(*point) for point in memory.get("series", ())), points)),
        thumbnails=list(report.get("thumbnails", ())),
    )
