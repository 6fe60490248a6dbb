"""Messages for a person: one line, short, and safe to show on a terminal."""

from __future__ import annotations

import unicodedata

import pytest

from sdcli import errors
from sdcli.errors import BY_NAME, ECHO_LIMIT, Interrupted, NotFiniteInHalf, SdcliError, echo, printable


def test_every_kind_of_failure_has_the_exit_code_of_the_contract() -> None:
    codes = {kind.__name__: kind.exit_code for kind in (SdcliError, *SdcliError.__subclasses__(), NotFiniteInHalf)}
    assert {name: codes[name] for name in BY_NAME} == {
        "SdcliError": 1,
        "BadRequest": 2,
        "ModelMissing": 3,
        "CheckpointDamaged": 1,
        "LacksFiles": 1,
        "WillNotFit": 4,
        "NotFinite": 5,
        "NotFiniteInHalf": 5,
        "CeilingCrossed": 137,
    }


def test_every_kind_but_interrupted_can_cross_from_the_worker_by_its_name() -> None:
    kinds = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, SdcliError)}
    assert set(BY_NAME.values()) == kinds and Interrupted not in kinds
    for name, kind in BY_NAME.items():
        assert str(kind("a message")) == "a message" and kind.__name__ == name


@pytest.mark.parametrize(
    ("signum", "code", "message"),
    [
        (2, 130, "interrupted"),
        (15, 143, "terminated"),
        (1, 129, "stopped by signal 1"),
        (9, 137, "stopped by signal 9"),
    ],
)
def test_an_interruption_ends_in_128_and_its_signal(signum: int, code: int, message: str) -> None:
    error = Interrupted(signum)
    assert (error.exit_code, str(error)) == (code, message)
    assert str(Interrupted(signum, "kept as a.png")) == f"{message}; kept as a.png"


@pytest.mark.parametrize("text", ["", "a cat, 2 hats", "Käse", "猫", "🐈", "naïve e\u0301", "it's", "back\\slash"])
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text
    assert echo(text) == f"'{text}'"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\nb"),
        ("a\r\tb", "a\\r\\tb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x07\x08\x7f", "\\x07\\x08\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("\0", "\\x00"),
        ("gnp\u202egpj", "gnp\\u202egpj"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
        ("no\u00a0break\u3000", "no\\xa0break\\u3000"),
        ("caf\udce9", "caf\\udce9"),
        ("\ud800\udfff", "\\ud800\\udfff"),
        ("\ue000", "\\ue000"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_could_act_on_a_terminal_or_hide_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert echo(text) == f"'{shown}'"


def test_every_character_comes_out_printable_and_encodable() -> None:
    for start in range(0, 0x110000, 0x1000):
        shown = printable("".join(map(chr, range(start, start + 0x1000))))
        shown.encode("utf-8")
        assert not any(unicodedata.category(character)[0] in "CZ" and character != " " for character in shown)


def test_long_text_is_cut_in_the_middle_to_the_limit() -> None:
    shown = echo("begin" + "x" * 1000 + "end")
    assert len(shown) <= ECHO_LIMIT + 2
    assert shown.startswith("'beginx") and shown.endswith("xend'") and "…" in shown
    assert echo("x" * ECHO_LIMIT) == f"'{'x' * ECHO_LIMIT}'"
    assert len(echo("x" * (ECHO_LIMIT + 1))) <= ECHO_LIMIT + 2


@pytest.mark.parametrize("limit", [3, 10, 20, 40, 80, 200])
@pytest.mark.parametrize("text", ["x" * 10_000_000, "\u202e" * 10_000, "\ud800" * 81, "\n" * 641, "🐈" * 640])
def test_no_text_is_longer_than_its_limit_once_escaped(text: str, limit: int) -> None:
    shown = echo(text, limit)
    assert len(shown) <= limit + 2 and shown.isprintable()


@pytest.mark.parametrize("thing", [None, 7, 1.5, ["a\n"], {"a": "\x1b"}, b"\xff", ValueError("bad\nvalue")], ids=repr)
def test_things_other_than_text_are_shown_too(thing: object) -> None:
    shown = echo(thing)
    assert shown[0] == shown[-1] == "'" and shown.isprintable()
