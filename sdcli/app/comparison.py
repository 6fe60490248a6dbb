"""A bench against an older one, case by case: what changed beyond the noise of the repeats."""

from __future__ import annotations

import json
import math
import os
import stat
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdcli.app.benching import SCHEMA
from sdcli.errors import SdcliError, echo
from sdcli.units import MIB, format_size

OLD_BYTES = 32 * MIB
"""Of a file to compare with at most: a run takes some KiB."""

RUNS_MOST = 10_000

QUARTILES_FROM = 8
"""So many values have quartiles that mean something; the spread of fewer is all of them."""

LEAST_CHANGE = {"time": 0.02, "memory": 0.005}
"""Less than this share is noise, also where one run a side shows none."""

_CASE: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "width": (int,),
    "height": (int,),
    "steps": (int,),
    "strength": (int, float, type(None)),
    "device": (str,),
    "dtype": (str,),
    "limit_bytes": (int, type(None)),
    "kernel_limit_bytes": (int, type(None)),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What is compared of one case: values of all its runs that came through."""

    outcomes: tuple[str, ...]
    step_s: tuple[float, ...]
    """Of steps but the first of each run."""
    total_s: tuple[float, ...]
    peak_bytes: tuple[float, ...]
    predicted_peak_bytes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of one case, before and now: medians. `share` is how much more it is now, 0.1 for a tenth."""

    case: str
    what: str
    kind: str
    was: float
    now: float

    @property
    def share(self) -> float:
        """Of what it was."""
        return self.now / self.was - 1

    def __str__(self) -> str:
        if self.kind == "memory":
            was, now = format_size(round(self.was)), format_size(round(self.now))
        else:
            was, now = f"{self.was:.2f} s", f"{self.now:.2f} s"
        return f"{self.case}: {self.what} {was} -> {now} ({self.share:+.1%})"


WHAT: dict[str, tuple[str, str, Callable[[Figures], Sequence[float]]]] = {
    "step_s": ("time a step", "time", lambda figures: figures.step_s),
    "total_s": ("total time", "time", lambda figures: figures.total_s),
    "peak_bytes": ("peak", "memory", lambda figures: figures.peak_bytes),
    "predicted_peak_bytes": ("predicted peak", "memory", lambda figures: figures.predicted_peak_bytes),
}
"""By the keys of the report."""


def read_bench(path: str) -> dict[str, Figures]:
    """The figures of a report of `sdcli bench --json`, by case. Raises SdcliError for anything else."""
    try:
        told = json.loads(_read(path))
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {echo(error.strerror or error)}; check its name") from None
    except (ValueError, RecursionError):
        raise SdcliError(f"{echo(path)} is no JSON: give what sdcli bench --json wrote") from None
    if not isinstance(told, dict) or told.get("schema") != SCHEMA or not isinstance(told.get("runs"), list):
        raise SdcliError(f"{echo(path)} is no report of {SCHEMA}: give what sdcli bench --json wrote")
    try:
        return figures_of(told)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        what = f"{type(error).__name__}: {error}"
        raise SdcliError(f"{echo(path)} is damaged, or of an older sdcli ({echo(what, 60)}): run that anew") from None


def _read(path: str) -> bytes:
    """A regular file of bounded size. A pipe is not waited for."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise SdcliError(f"{echo(path)} is no file: give what sdcli bench --json wrote")
        raw = file.read(OLD_BYTES + 1)
    if len(raw) > OLD_BYTES:
        raise SdcliError(f"{echo(path)} is larger than {format_size(OLD_BYTES)}: give what sdcli bench --json wrote")
    return raw


def figures_of(told: Mapping[str, Any]) -> dict[str, Figures]:
    """The same of a report that is read. Raises LookupError, TypeError, ValueError or OverflowError if it is none."""
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for run in told["runs"][:RUNS_MOST]:
        cases.setdefault(_name(run["case"]), []).append(run)
    return {name: _figures(runs) for name, runs in cases.items()}


def _name(case: Mapping[str, Any]) -> str:
    """A case in words that are the same for the same case alone."""
    for key, kinds in _CASE.items():
        if not isinstance(case[key], kinds):
            raise TypeError(f"{key} of a case")
    model = echo(case["model"], 60).strip("'")
    limits = [_limit(case["limit_bytes"], "ceiling")]
    limits += [_limit(case["kernel_limit_bytes"], "kernel limit")] if case["kernel_limit_bytes"] is not None else []
    picture = "" if case["strength"] is None else f" from a picture at {case['strength']:g}"
    job = f"{case['width']}x{case['height']}, {case['steps']} steps{picture}"
    device, dtype = (echo(case[key], 20).strip("'") for key in ("device", "dtype"))
    return f"{model}, {job}, {device} in {dtype}, {', '.join(limits)}"


def _limit(limit_bytes: int | None, what: str) -> str:
    return f"no {what}" if limit_bytes is None else f"{what} {limit_bytes / MIB:g} MiB"


def _figures(runs: Sequence[Mapping[str, Any]]) -> Figures:
    through = [run for run in runs if run["outcome"] == "ok"]
    predicted = [run["memory"]["predicted_peak_bytes"] for run in through]
    return Figures(
        tuple(sorted({echo(run["outcome"], 20).strip("'") for run in runs})),
        tuple(_number(value) for run in through for value in (run["step_s"][1:] or run["step_s"])),
        tuple(_number(run["total_s"]) for run in through),
        tuple(_number(run["memory"]["peak_bytes"]) for run in through),
        tuple(
            _number(predicted) for run in through if (predicted := run["memory"]["predicted_peak_bytes"]) is not None
        ),
    )


def _number(value: Any) -> float:
    """One that can be compared. Raises TypeError or ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("a number was expected")
    if not math.isfinite(value) or value < 0:
        raise ValueError("a number out of range")
    return float(value)


def changes(old: Mapping[str, Figures], new: Mapping[str, Figures]) -> Iterator[Change]:
    """What changed beyond the noise, of the cases that both have."""
    for case in (case for case in new if case in old):
        for what, kind, values in WHAT.values():
            was, now = values(old[case]), values(new[case])
            if was and now and _differ(was, now, LEAST_CHANGE[kind]):
                yield Change(case, what, kind, statistics.median(was), statistics.median(now))


def _differ(was: Sequence[float], now: Sequence[float], least: float) -> bool:
    """Whether the medians differ notably, and the spreads do not overlap."""
    before, after = statistics.median(was), statistics.median(now)
    (low, high), (lower, higher) = _spread(was), _spread(now)
    return before > 0 and abs(after - before) > least * before and (lower > high or higher < low)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Least and most; of many values the quartiles, since one of them may be an accident."""
    if len(values) < QUARTILES_FROM:
        return min(values), max(values)
    quartiles = statistics.quantiles(values, n=4)
    return quartiles[0], quartiles[2]


@dataclass(frozen=True, slots=True)
class Ending:
    """A case that came to another end: how its runs ended before and now."""

    case: str
    was: tuple[str, ...]
    now: tuple[str, ...]

    @property
    def is_worse(self) -> bool:
        """Whether it came through before, and now does not always or in another way."""
        return "ok" in self.was and ("ok" not in self.now or not {*self.now} <= {*self.was, "ok"})

    def __str__(self) -> str:
        return f"{self.case}: {' '.join(self.was)} -> {' '.join(self.now)}"


def other_endings(old: Mapping[str, Figures], new: Mapping[str, Figures]) -> list[Ending]:
    """What came to another end, of the cases that both have."""
    both = [Ending(case, old[case].outcomes, new[case].outcomes) for case in new if case in old]
    return [ending for ending in both if ending.was != ending.now]
