"""How long a step and all else of a picture took in a run of the same kind, remembered in the cache.

Where such a run is known, it tells more than operations and speeds do: steps of small models go by in other things than
arithmetic, and starting takes its time as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from sdcli.plan.remembered import Table, change_table, number, read_table

_FILE = "paces.json"

BELIEVED_S = 1e-5, 1e6
"""A step, or all else, that a file may claim."""

KEPT = 100
"""Kinds of runs: of those remembered longest ago the oldest go."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a step, and of everything of a run of one picture that is no step."""

    step_s: float
    rest_s: float


def remembered_pace(key: str) -> Pace | None:
    """That of a kind of run."""
    told = read_table(_FILE).get(key)
    if not isinstance(told, list) or len(told) != 2:
        return None
    step_s, rest_s = (number(value, *BELIEVED_S) for value in told)
    return None if step_s is None or rest_s is None else Pace(step_s, rest_s)


def remember_pace(key: str, pace: Pace) -> None:
    """Keep the mean of what was known and what is."""
    before = remembered_pace(key)
    if before is not None:
        pace = Pace((before.step_s + pace.step_s) / 2, (before.rest_s + pace.rest_s) / 2)

    def change(table: Table) -> Table:
        others = [(name, told) for name, told in table.items() if name != key]
        return dict([*others, (key, [pace.step_s, pace.rest_s])][-KEPT:])

    change_table(_FILE, change)
