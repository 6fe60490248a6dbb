"""The main chart: the footprint over time, coloured by stage, against the ceiling."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdcli.pages.drawing import LETTER, LINE, WIDE, Draw, Flags, apart, in_mib, mib_axis
from sdcli.pages.palette import light, role_of
from sdcli.pages.runs import Run, format_mib
from sdcli.plan.series import Point

HEIGHT = 3.5
"""Inches."""

_ROWS = 4
"""Of stages' names above the chart, at most."""

Segment = tuple[str, list[float], list[float]]
"""A stage's name, seconds, and the footprint in MiB."""


def footprint(run: Run) -> Draw:
    """Of a run that has points."""

    def draw(width: float) -> Figure:
        figure = Figure(figsize=(width, HEIGHT))
        left, right = (0.62, 1.35) if width == WIDE else (0.4, 0.85)
        across, up = width - left - right, HEIGHT - 0.45 - _ROWS * LINE
        axes = figure.add_axes((left / width, 0.45 / HEIGHT, across / width, up / HEIGHT))
        segments = list(_segments(run.points))
        end_s = max(run.total_s, run.points[-1].at_s)
        top = in_mib(max(run.needed_bytes, run.near_limit_bytes or 0)) * 1.06
        axes.set(xlim=(0, end_s), ylim=(0, top))
        mib_axis(axes, "y", 6)
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(axis="x", length=3)
        axes.set_xlabel("seconds since the run began")
        axes.text(0, 1.02, "MiB", transform=axes.transAxes, ha="right", va="bottom", color=light("soft"))
        predicted = {stage.name: stage.predicted_bytes for stage in run.stages if stage.predicted_bytes}
        for name, at_s, mib in segments:
            colour = light(role_of(name))
            axes.fill_between(at_s, mib, color=colour, alpha=0.25, linewidth=0)
            axes.plot(at_s, mib, color=colour, linewidth=1.4, solid_joinstyle="round")
            if name in predicted and not run.on_cuda:
                axes.hlines(in_mib(predicted[name]), at_s[0], at_s[-1], light("ink"), (0, (2, 1.6)), linewidth=1)
        _name_stages(axes, segments, across, end_s)
        _name_heights(axes, run, across, up, "\n" if width != WIDE else " ")
        return figure

    return draw


def _segments(points: list[Point]) -> Iterator[Segment]:
    """Stretches of one stage; each goes on to where the next one begins."""
    stretches = [(stage, list(some)) for stage, some in groupby(points, lambda point: point.stage)]
    for number, (stage, some) in enumerate(stretches):
        at_s, mib = [point.at_s for point in some], [in_mib(point.footprint_bytes) for point in some]
        if number + 1 < len(stretches):
            at_s.append(stretches[number + 1][1][0].at_s)
            mib.append(mib[-1])
        elif len(some) == 1:
            at_s.append(at_s[-1])
            mib.append(mib[-1])
        yield stage, at_s, mib


def _name_stages(axes: Axes, segments: list[Segment], across: float, end_s: float) -> None:
    """The name of each stage above its longest stretch: in its middle, or beside a line up from one that is short."""
    longest: dict[str, Segment] = {}
    for segment in segments:
        known = longest.get(segment[0])
        if known is None or segment[1][-1] - segment[1][0] > known[1][-1] - known[1][0]:
            longest[segment[0]] = segment
    up = axes.get_position().height * HEIGHT
    flags = Flags(_ROWS)
    bands = [(name, at_s[0] / end_s * across, at_s[-1] / end_s * across) for name, at_s, _ in longest.values()]
    for name, begin, end in sorted(bands, key=lambda band: (band[2] - band[1] < _width(band[0]), -band[1])):
        colour, middle, width = light(role_of(name)), (begin + end) / 2, _width(name)
        axes.plot([begin / across, end / across], [1, 1], color=colour, lw=2.5, transform=axes.transAxes, clip_on=False)
        fits = width <= end - begin
        left = middle - width / 2 if fits else middle + LETTER if middle + width < across else middle - width - LETTER
        row = flags.place(left, left + width, None if fits else middle)
        if row is None:
            continue
        height = 1 + (0.08 + row * LINE) / up
        axes.text(left / across, height, name, transform=axes.transAxes, va="bottom", color=colour)
        if not fits:
            stem = [1, height + 0.8 * LINE / up]
            axes.plot([middle / across] * 2, stem, color=colour, lw=0.8, transform=axes.transAxes, clip_on=False)


def _width(name: str) -> float:
    return len(name) * LETTER


def _name_heights(axes: Axes, run: Run, across: float, up: float, between: str) -> None:
    """Ceiling, prediction and peak in the right margin, each beside its height."""
    top = axes.get_ylim()[1]
    named: list[tuple[float, str, str]] = []
    limit = run.near_limit_bytes
    if limit is not None:
        named.append((limit, f"ceiling{between}{format_mib(limit)}", light("ceiling")))
        axes.axhline(in_mib(limit), color=light("ceiling"), linewidth=1.5)
    elif run.limit_bytes is not None and not run.on_cuda:
        named.append((top * 2**20, f"ceiling{between}{run.ceiling} ↑", light("ceiling")))
    if run.predicted_bytes and not run.on_cuda:
        named.append((run.predicted_bytes, f"predicted{between}{format_mib(run.predicted_bytes)}", light("ink")))
    peak = max(run.points, key=lambda point: point.footprint_bytes)
    colour = light(role_of(peak.stage))
    named.append((peak.footprint_bytes, f"peak{between}{format_mib(peak.footprint_bytes)}", colour))
    axes.plot(peak.at_s, in_mib(peak.footprint_bytes), "o", color=colour, markersize=5, zorder=5, clip_on=False)
    named.sort(reverse=True)
    lines = 2 if between == "\n" else 1
    wanted = [in_mib(size_bytes) / top * up for size_bytes, *_ in named]
    for (size_bytes, words, colour), height in zip(named, apart(wanted, lines * LINE + 0.02), strict=True):
        axes.annotate(
            words,
            (1, in_mib(size_bytes) / top),
            xycoords="axes fraction",
            xytext=(1 + 0.18 / across, height / up),
            textcoords="axes fraction",
            va="center",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkA": 1, "shrinkB": 1, "relpos": (0, 0.5)},
        )
