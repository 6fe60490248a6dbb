"""What a setting of a config may be: rules of which schemas are made, each a question that has yes or no for an answer.

A rule is asked of plain JSON values alone: finite numbers, words and short lists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Any

Rule = Callable[[Any], bool]

LAYERS_LIMIT = 64
"""Far above any model that is known: a config must not ask for a million layers."""


def setting(default: Any, rule: Rule) -> Any:
    """A field of a schema: the value that the library takes where a config has none, and what it may be."""
    return field(default=default, metadata={"rule": rule})


def is_size(value: object) -> bool:
    """Whether it is a whole number above 0."""
    return type(value) is int and value > 0


def is_layer_count(value: object) -> bool:
    """Whether it is a number of layers."""
    return type(value) is int and 0 < value <= LAYERS_LIMIT


def is_odd(value: object) -> bool:
    """Whether it is an odd whole number above 0."""
    return type(value) is int and value > 0 and value % 2 == 1


def is_flag(value: object) -> bool:
    """Whether it is true, false or null."""
    return value is None or isinstance(value, bool)


def is_bool(value: object) -> bool:
    """Whether it is true or false."""
    return isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a number of any kind."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_above_0(value: object) -> bool:
    """Whether it is a number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def is_not_0(value: object) -> bool:
    """Whether it is a number that one can divide by."""
    return is_number(value) and value != 0


def is_word(value: object) -> bool:
    """Whether it is a text."""
    return isinstance(value, str)


def above(least: int) -> Rule:
    """A whole number above `least`."""
    return lambda value: is_size(value) and value > least


def between(least: float, most: float) -> Rule:
    """A number in a range, its ends included."""
    return lambda value: is_number(value) and least <= value <= most


def among(*known: str | int | None) -> Rule:
    """One of a few."""
    return lambda value: not isinstance(value, bool | list | float) and value in known


def list_of(rule: Rule, most: int | None = None) -> Rule:
    """A list with something in it, at most so much, all of it by the rule."""

    def fits(value: object) -> bool:
        return (
            isinstance(value, list) and bool(value) and all(map(rule, value)) and (most is None or len(value) <= most)
        )

    return fits


def for_all_or_each(rule: Rule) -> Rule:
    """One value for all levels of a network, or a list of one for each."""
    each = list_of(rule)
    return lambda value: rule(value) or each(value)


def or_none(rule: Rule) -> Rule:
    """By the rule, or null."""
    return lambda value: value is None or rule(value)
