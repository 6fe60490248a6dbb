"""How long a step and all else of a picture took in a run of the same kind, remembered in the cache.

Where such a run is known, it tells more than operations and speeds do: steps of small models go by in other things than
arithmetic, and starting takes its time as well.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from sdcli.plan.remembered import Table, change_table, number, read_table

_FILE = "paces.json"

BELIEVED_S = 1e-5, 1e6
"""A step, or all else, that a file may claim."""

KEPT = 100
"""Kinds of runs: of those remembered longest ago the oldest go."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a step, of what else each picture takes, and of what a run takes once however many it draws."""

    step_s: float
    picture_s: float
    once_s: float

    def of(self, pictures: int, steps: int) -> float:
        """Those of a run of so many pictures of so many steps each."""
        return self.once_s + pictures * (steps * self.step_s + self.picture_s)


def remembered_pace(key: str) -> Pace | None:
    """That of a kind of run."""
    told = read_table(_FILE).get(key)
    if not isinstance(told, list) or len(told) != 3:
        return None
    seconds = [number(value, *BELIEVED_S) for value in told]
    known = [value for value in seconds if value is not None]
    return Pace(*known) if len(known) == len(seconds) else None


def remember_pace(key: str, pace: Pace) -> None:
    """Keep the mean of what was known and what is; what took less than half of what was known goes for itself.

    Something else ran beside the run before, as it seems.
    """
    before, now = remembered_pace(key), astuple(pace)
    if before is not None:
        pairs = zip(astuple(before), now, strict=True)
        now = tuple(now_is if 2 * now_is < was else (was + now_is) / 2 for was, now_is in pairs)

    def change(table: Table) -> Table:
        others = [(name, told) for name, told in table.items() if name != key]
        return dict([*others, (key, list(now))][-KEPT:])

    change_table(_FILE, change)
