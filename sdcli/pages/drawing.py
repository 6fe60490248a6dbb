"""matplotlib's figures in the page's hand: as SVG whose text and colours are the page's, or as a PNG picture."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sdcli.pages.palette import by_role, light
from sdcli.units import MIB

WIDE, NARROW = 9.2, 3.4
"""Inches across: of a desktop's page, and of a phone's."""

LETTER = 0.066
"""Inches of a letter's width, on average."""

LINE = 0.15
"""Inches from one line of text to the next."""

Draw = Callable[[float], Figure]
"""Draws a chart that is so wide."""

_FONT = re.compile(r"font: ([^;\"']*?px) [^;\"]*")
_DECIMALS = re.compile(r"\d+\.\d{3,}")
_FACES = "'Segoe UI', system-ui, -apple-system, Roboto, Helvetica, Arial, sans-serif"


@contextmanager
def _hand(salt: str) -> Iterator[None]:
    """matplotlib's settings for as long as a figure is drawn and saved."""
    sides = {f"axes.spines.{side}": False for side in ("left", "right", "top")}
    soft = {f"{axis}tick.color": light("soft") for axis in "xy"} | {"axes.labelcolor": light("soft")}
    words = {"svg.fonttype": "none", "text.parse_math": False, "font.size": 8, "font.family": "sans-serif"}
    lines = {"axes.edgecolor": light("rule"), "grid.color": light("rule"), "axes.facecolor": "none"}
    settings: Any = {**sides, **soft, **words, **lines, "text.color": light("ink"), "svg.hashsalt": salt}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that its font lacks: a page has the reader's fonts
        yield


def svg(draw: Draw, name: str, about: str) -> str:
    """A chart twice, for a page to show the one that suits its width. `about` says in words what can be seen."""
    return "".join(
        _svg(draw, width, f"{name}-{suits}", suits, about) for suits, width in (("wide", WIDE), ("narrow", NARROW))
    )


def _svg(draw: Draw, width: float, name: str, suits: str, about: str) -> str:
    written = io.StringIO()
    with _hand(name):
        draw(width).savefig(
            written, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None}
        )
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>", _opened(suits, about), text, count=1, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)  # a page has many charts
    text = _DECIMALS.sub(lambda found: f"{float(found[0]):.2f}", re.sub(r"\s*\n\s*", " ", text))
    return by_role(_FONT.sub(r"font: \1 inherit", text).replace(" inherit", f" {_FACES}"))


def _opened(suits: str, about: str) -> str:
    told = html.escape(about).replace("\\", "")
    return rf'<svg class="{suits}" viewBox="\1" role="img" aria-label="{told}">'


def png(draw: Draw, title: str) -> bytes:
    """A chart as a picture, twice as sharp as a page is wide."""
    written = io.BytesIO()
    with _hand("png"):
        figure = draw(WIDE)
        figure.text(0.008, 0.97, title, va="top", fontweight="bold")
        figure.savefig(written, format="png", dpi=200, facecolor=light("paper"))
    return written.getvalue()


def mib_axis(axes: Axes, axis: str, most: int) -> None:
    """An axis of bytes from 0, with round numbers of MiB."""
    which = axes.xaxis if axis == "x" else axes.yaxis
    which.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10], integer=True))
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")))
    which.set_tick_params(length=0)


def in_mib(size_bytes: float) -> float:
    """As axes have it."""
    return size_bytes / MIB


def apart(wanted: list[float], least: float) -> list[float]:
    """Heights nearest to the `wanted` ones, which descend, that are `least` apart."""
    placed: list[float] = []
    for height in wanted:
        placed.append(min(height, placed[-1] - least) if placed else height)
    return placed


class Flags:
    """Texts in rows one above the other, some on stems from below: none is over another, no stem goes through one."""

    def __init__(self, rows: int) -> None:
        self._rows = range(rows)
        self._texts: list[tuple[int, float, float]] = []
        self._stems: list[tuple[int, float]] = []

    def place(self, left: float, right: float, stem: float | None = None) -> int | None:
        """The lowest row that has room from `left` to `right`, in inches; None if none has."""
        for row in self._rows:
            over = any(at == row and low < right and left < high for at, low, high in self._texts)
            through = any(at > row and left < middle < right for at, middle in self._stems)
            crossed = stem is not None and any(at < row and low < stem < high for at, low, high in self._texts)
            if not (over or through or crossed):
                self._texts.append((row, left, right))
                if stem is not None:
                    self._stems.append((row, stem))
                return row
        return None
