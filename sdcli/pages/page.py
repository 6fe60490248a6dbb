"""One page that shows runs: every style, chart and picture is in it, and it loads nothing and runs nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from sdcli.pages import comparing, drawing, palette
from sdcli.pages.footprint import footprint
from sdcli.pages.runs import CHARTS_MOST, OUTCOMES, Run, format_ceiling, format_mib, format_s, runs_of

_TEMPLATE = "page.html"


def page(reports: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    """The HTML of one or many runs; `reports` as runs_of takes them.

    `about` has `command`, the command line; `machine`, what there is to know of it by name; and `made`, a date.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sdcli.pages", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"mib": format_mib, "s": format_s, "ceiling": format_ceiling, "role": palette.role_of}
    runs = runs_of(reports)
    return environment.get_template(
        _TEMPLATE
    ).render(
        runs=runs,
        about=about,
        outcomes=OUTCOMES,
        light=Markup(" ".join(palette.style(0))),  # noqa: S704  ours
        dark=Markup(" ".join(palette.style(1))),  # noqa: S704  ours
        footprints=[_footprint(run, number) for number, run in enumerate(runs[:CHARTS_MOST])],
        compared=_compared(runs),
        curve=_curve(runs),
        as_json=[json.dumps(run.report, indent=1) for run in runs],
    )


def plot(reports: Sequence[Mapping[str, Any]]) -> bytes | None:
    """The main chart as a PNG: of one run its footprint over time, of several time against memory.

    None where nothing was measured.
    """
    runs = runs_of(reports)
    lines = comparing.lines_of(runs)
    if len(runs) > 1 and lines:
        return drawing.png(comparing.time_and_memory(lines), " / ".join(lines))
    measured = [run for run in runs if run.points]
    return drawing.png(footprint(measured[-1]), measured[-1].title) if measured else None


def _footprint(run: Run, number: int) -> Markup | None:
    if not run.points:
        return None
    what = f"{'Host footprint' if run.on_cuda else 'Footprint'} over time: peak {format_mib(run.peak_bytes)}"
    told = f"{what}, predicted {format_mib(run.predicted_bytes)}, ceiling {run.ceiling}"
    return Markup(drawing.svg(footprint(run), f"footprint-{number}", told))  # noqa: S704  matplotlib's, and escaped


def _compared(runs: list[Run]) -> Markup | None:
    pairs = comparing.pairs_of(runs)
    if not pairs:
        return None
    told = "Predicted against measured peaks: " + ", ".join(
        f"{pair.name} {format_mib(pair.predicted_bytes)} and {format_mib(pair.measured_bytes)}" for pair in pairs
    )
    return Markup(drawing.svg(comparing.predicted_and_measured(pairs), "pairs", told))  # noqa: S704  likewise


def _curve(runs: list[Run]) -> Markup | None:
    lines = comparing.lines_of(runs)
    if max(map(len, lines.values()), default=0) < 2 and len(lines) < 2:
        return None
    points = [point for line in lines.values() for point in line]
    told = "Time against memory: " + ", ".join(
        f"under {ceiling} {step_s:.3g} s a step in {mib:.0f} MiB" for ceiling, mib, step_s in points
    )
    return Markup(drawing.svg(comparing.time_and_memory(lines), "curve", told))  # noqa: S704  likewise
