"""Colours of pages and charts by their roles, each for light and for dark surroundings.

Those of stages differ in hue and in lightness, so that they can be told apart by the colour-blind and in grey.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

COLOURS = {
    "paper": ("#fdfcfa", "#15171b"),
    "ink": ("#1c1e22", "#ecebe7"),
    "soft": ("#62666e", "#a0a4ac"),
    "rule": ("#dedcd6", "#33373e"),
    "ceiling": ("#b3261e", "#ff8a7a"),
    "start": ("#8d929b", "#6f757f"),
    "words": ("#1f4e8c", "#5f97e0"),
    "image": ("#8a5aa8", "#cfa5ea"),
    "denoise": ("#d97a00", "#f2a541"),
    "decode": ("#0f8f80", "#2fa896"),
    "other": ("#a3476a", "#ee8fb2"),
}
"""Light and dark, by role."""

_STAGES = {"start": "start", "encode_prompt": "words", "encode_image": "image", "denoise": "denoise"}
_STAGES |= {"decode": "decode"}


def role_of(stage: str) -> str:
    """The role of a stage's colour: those of second rounds go by what their names begin with."""
    return next((role for name, role in _STAGES.items() if stage.startswith(name)), "other")


def light(role: str) -> str:
    """The colour on paper."""
    return COLOURS[role][0]


def by_role(drawing: str) -> str:
    """A drawing in light colours with their roles instead, which the page's style knows for light and dark."""
    roles = {light(role): role for role in COLOURS}
    return re.sub("|".join(roles), lambda found: f"var(--{roles[found[0]]})", drawing)


def style(column: int) -> Iterable[str]:
    """Declarations of all roles: column 0 is light, 1 is dark."""
    return (f"--{role}: {both[column]};" for role, both in COLOURS.items())
