"""What bench --against says, and whether that is an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.app.comparison import Change, Figures, changes, figures_of, other_endings
from sdcli.cli.parsed import Params
from sdcli.errors import BadRequest, SdcliError


@dataclass(frozen=True, slots=True)
class Bounds:
    """By how many percent time and memory may grow; None is by any."""

    slowdown: float | None
    growth: float | None

    @classmethod
    def of(cls, params: Params) -> Bounds:
        """Those of a command line. Raises BadRequest where there is nothing to compare with."""
        bounds = cls(params["max_slowdown"], params["max_growth"])
        if params["against"] is None and bounds != cls(None, None):
            raise BadRequest("--max-slowdown and --max-growth need an older bench: give --against OLD.json")
        return bounds

    def crossed_by(self, change: Change) -> bool:
        """Whether it is more than may be."""
        most = self.slowdown if change.kind == "time" else self.growth
        return most is not None and change.share * 100 > most


@dataclass(frozen=True, slots=True)
class Compared:
    """Lines for a person, and what is wrong, if anything is."""

    lines: list[str]
    trouble: SdcliError | None


def compare(old: Mapping[str, Figures], told: Mapping[str, Any], bounds: Bounds) -> Compared:
    """An older bench with the report of this one."""
    new = figures_of(told)
    found, ends = list(changes(old, new)), other_endings(old, new)
    lines = [*map(str, ends), *map(str, found)]
    lines += [f"{case}: not in the older bench" for case in new if case not in old]
    lines += [f"{case}: in the older bench alone" for case in old if case not in new]
    if not new.keys() & old.keys():
        return Compared(lines, SdcliError("the older bench has none of these cases: give the options that it had"))
    worse = [str(change) for change in found if bounds.crossed_by(change)]
    if bounds != Bounds(None, None):
        worse = [*(str(ending) for ending in ends if ending.is_worse), *worse]
    if not found and not ends:
        lines.insert(0, "nothing changed beyond the noise")
    if not worse:
        return Compared(lines, None)
    more = f", and {len(worse) - 1} more" if len(worse) > 1 else ""
    return Compared(lines, SdcliError(f"worse than it may be: {worse[0]}{more}"))
