"""The charts that compare: predicted against measured, and time against memory."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdcli.pages.drawing import LETTER, LINE, WIDE, Draw, Flags, in_mib, mib_axis
from sdcli.pages.palette import light, role_of
from sdcli.pages.runs import NEAR, Run, format_mib

SERIES = ("denoise", "words", "decode", "image", "other")
"""Roles whose colours lines of different models take."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What was predicted, what was measured, and the ceiling over both."""

    name: str
    predicted_bytes: int
    measured_bytes: int
    limit_bytes: int | None
    role: str


def pairs_of(runs: list[Run]) -> list[Pair]:
    """Of a run alone its stages, of several runs their peaks; without what was not measured or not predicted."""
    if len(runs) == 1:
        run = runs[0]
        found = [Pair(s.name, s.predicted_bytes, s.peak_bytes, run.limit_bytes, role_of(s.name)) for s in run.stages]
    else:
        many = len({run.model for run in runs}) > 1
        found = [
            Pair(
                f"{run.model}, {run.ceiling}" if many else f"ceiling {run.ceiling}",
                run.predicted_bytes,
                run.peak_bytes,
                run.limit_bytes,
                "denoise",
            )
            for run in runs
        ]
    return [pair for pair in found if pair.predicted_bytes and pair.measured_bytes]


def predicted_and_measured(pairs: list[Pair]) -> Draw:
    """A row a pair: an open circle for what was predicted, a dot for what was measured, a bar for the ceiling."""
    most = max(max(pair.predicted_bytes, pair.measured_bytes) for pair in pairs)
    drawn = [one.limit_bytes for one in pairs if one.limit_bytes is not None and one.limit_bytes <= NEAR * most]

    def draw(width: float) -> Figure:
        height = 0.75 + (0.34 if width == WIDE else 0.5) * len(pairs)
        figure = Figure(figsize=(width, height))
        left, right = (1.7, 1.75) if width == WIDE else (0.12, 0.3)
        axes = figure.add_axes((left / width, 0.42 / height, (width - left - right) / width, (height - 0.68) / height))
        axes.set(xlim=(0, in_mib(max([most, *drawn])) * 1.02), ylim=(len(pairs) - 0.5, -0.5))
        mib_axis(axes, "x", 6 if width == WIDE else 4)
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_yticks([])
        axes.set_xlabel("MiB")
        for row, pair in enumerate(pairs):
            _draw_pair(axes, row, pair, width == WIDE)
        _name_marks(axes, pairs[0])
        return figure

    return draw


def _draw_pair(axes: Axes, row: int, pair: Pair, wide: bool) -> None:
    reach = 0.32 if wide else 0.15
    predicted, measured, colour = in_mib(pair.predicted_bytes), in_mib(pair.measured_bytes), light(pair.role)
    axes.plot([0, measured], [row, row], color=colour, linewidth=3, alpha=0.3, solid_capstyle="butt")
    axes.plot([measured, predicted], [row, row], color=light("ink"), linewidth=1)
    axes.plot(predicted, row, "o", markerfacecolor=light("paper"), color=light("ink"), markersize=6.5, clip_on=False)
    axes.plot(measured, row, "o", color=colour, markersize=6.5, clip_on=False)
    if pair.limit_bytes is not None and in_mib(pair.limit_bytes) <= axes.get_xlim()[1]:
        axes.plot([in_mib(pair.limit_bytes)] * 2, [row - reach, row + reach], color=light("ceiling"), linewidth=2)
    over = pair.predicted_bytes / pair.measured_bytes - 1
    words = f"{format_mib(pair.measured_bytes)}, predicted {over:+.1%}".replace("-", "−")
    beside = axes.get_yaxis_transform()
    if wide:
        axes.text(-0.02, row, pair.name, transform=beside, ha="right", va="center")
        axes.text(1.02, row, words, transform=beside, va="center", color=light("soft"))
    else:
        axes.text(0, row - 0.2, pair.name, transform=beside, va="bottom")
        axes.text(1, row - 0.2, words, transform=beside, ha="right", va="bottom", color=light("soft"))


def _name_marks(axes: Axes, first: Pair) -> None:
    """What dot and circle are, above the chart in the order in which they stand."""
    marks = [("●", "measured", light(first.role)), ("○", "predicted", light("ink"))]
    if first.limit_bytes is not None and in_mib(first.limit_bytes) <= axes.get_xlim()[1]:
        marks.append(("❙", "ceiling", light("ceiling")))
    for number, (mark, name, colour) in enumerate(marks):
        axes.annotate(
            f"{mark} {name}",
            (0, 1),
            xycoords="axes fraction",
            xytext=(number * 62, 8),
            textcoords="offset points",
            color=colour,
        )


def lines_of(runs: list[Run]) -> dict[str, list[tuple[str, float, float]]]:
    """By model and size: ceiling in words, peak in MiB and seconds a step, the median of the runs of each ceiling."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.outcome == "ok" and run.step_s is not None and run.peak_bytes:
            cells.setdefault((run.title, run.ceiling), []).append(run)
    lines: dict[str, list[tuple[str, float, float]]] = {}
    for (title, ceiling), some in cells.items():
        steps = [run.step_s for run in some if run.step_s is not None]
        point = ceiling, in_mib(median(run.peak_bytes for run in some)), median(steps)
        lines.setdefault(title, []).append(point)
    return {title: sorted(points, key=lambda point: point[1]) for title, points in lines.items()}


def time_and_memory(lines: dict[str, list[tuple[str, float, float]]]) -> Draw:
    """Seconds a step against the peak, a point a ceiling and a line a model."""
    points = [point for line in lines.values() for point in line]
    most_mib, most_s = max(mib for _, mib, _ in points), max(step_s for *_, step_s in points)

    def draw(width: float) -> Figure:
        height = 3.2
        figure = Figure(figsize=(width, height))
        left, right = (0.62, 0.5) if width == WIDE else (0.45, 0.3)
        axes = figure.add_axes((left / width, 0.45 / height, (width - left - right) / width, (height - 0.75) / height))
        axes.set(xlim=(0, most_mib * 1.12), ylim=(0, most_s * 1.25), xlabel="peak, MiB")
        mib_axis(axes, "x", 7 if width == WIDE else 4)
        axes.tick_params(axis="y", length=0)
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_title("seconds a step", loc="left", fontsize=8, color=light("soft"))
        flags = [Flags(4) for _ in lines]
        for number, (title, line) in enumerate(lines.items()):
            colour = light(SERIES[number % len(SERIES)])
            at, step_s = [mib for _, mib, _ in line], [seconds for *_, seconds in line]
            axes.plot(at, step_s, "o-", color=colour, linewidth=1.6, markersize=6)
            for ceiling, *point in line:
                half = len(ceiling) * LETTER / 2
                middle = point[0] / axes.get_xlim()[1] * (width - left - right)
                row = flags[number].place(middle - half, middle + half)
                if row is None:
                    continue
                up = (7, -14, 7 + 72 * LINE, -14 - 72 * LINE)[row]
                axes.annotate(ceiling, (point[0], point[1]), (0, up), textcoords="offset points", ha="center")
            if len(lines) > 1:
                axes.annotate(
                    title, (at[-1], step_s[-1]), xytext=(4, -12), textcoords="offset points", ha="right", color=colour
                )
        return figure

    return draw
