"""What this machine's runs have shown of the remainder (plan/remainder.py), remembered in the cache.

Shipped values are where it starts, with a wide margin on kinds of processors that nobody has measured. A run that took
more than was predicted makes the next prediction larger; one that took less takes a wide margin away, for jobs that are
not much larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdcli.plan.remainder import UNMEASURED_TIMES, Remainder
from sdcli.plan.remembered import change_table, number, read_table

Source = Literal["shipped", "learned", "wide"]

WORDS: dict[Source, str] = {
    "shipped": "as measured on this kind of processor",
    "learned": "as this machine's runs have shown",
    "wide": "never measured on this kind of processor: a wide margin, until a first run",
}

_FILE = "remainders.json"

BELIEVED = {"times": (0.25, 4.0), "heap_bytes": (0.0, 1e12)}
"""No less and no more is ever believed of a file."""

SAFE, LEAST, MOST = 1.15, 0.75, 2.0
"""So many times what was seen is predicted where nobody has measured, and no less and no more of what is shipped."""

LARGER = 1.5
"""A job of so many times what was seen is not known any more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The most that runs took, as a share of what is shipped, and the most that was alive in the heap meanwhile."""

    times: float
    heap_bytes: float


def remembered_remainder(key: str) -> Seen | None:
    """What runs have shown on this device, in this type, with this torch."""
    told = read_table(_FILE).get(key)
    if not isinstance(told, dict):
        return None
    known = {name: number(told.get(name), *bounds) for name, bounds in BELIEVED.items()}
    times, heap_bytes = known["times"], known["heap_bytes"]
    return None if times is None or heap_bytes is None else Seen(times, heap_bytes)


def remember_remainder(key: str, seen: Seen) -> None:
    """Keep the most of what was and what is seen."""
    before = remembered_remainder(key)
    if before is not None:
        seen = Seen(max(seen.times, before.times), max(seen.heap_bytes, before.heap_bytes))
    change_table(_FILE, lambda table: table | {key: {"times": seen.times, "heap_bytes": seen.heap_bytes}})


def corrected(shipped: Remainder, measured: bool, seen: Seen | None, heap_bytes: int) -> tuple[Remainder, Source]:
    """The remainder to plan a job by, of so many bytes in the heap, and where it is from.

    `measured` is whether the shipped values are of this kind of processor.
    """
    if measured:
        more = seen is not None and seen.times > 1.0
        return (shipped.grown(min(SAFE, seen.times)), "learned") if seen and more else (shipped, "shipped")
    if seen is None or heap_bytes > LARGER * seen.heap_bytes:
        return shipped.grown(max(UNMEASURED_TIMES, seen.times if seen else 0.0)), "wide"
    return shipped.grown(min(MOST, max(LEAST, seen.times * SAFE))), "learned"
