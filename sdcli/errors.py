"""Every failure that a person may see, and the exit code it ends in.

    SdcliError                1   a file, model or run-time failure
    ├── BadRequest            2   wrong usage, found before torch is imported
    ├── ModelMissing          3   the model is not on disk and cannot be fetched
    ├── LacksFiles            1   the model is on disk, and not whole
    ├── WillNotFit            4   said before any weights load
    ├── NotFinite             5   NaN or infinity
    │   └── NotFiniteInHalf   5   of half precision: fp32 is tried before anybody hears of it
    └── CeilingCrossed      137   the worker was killed at the ceiling
    Interrupted        128 + n   a signal: Ctrl-C 130, SIGTERM 143, SIGHUP 129

A message is one line: what went wrong, which thing, what to do. Text that came from outside goes
through `echo`, so that it cannot be long, cannot move the cursor and cannot pose as our own words.
"""

from __future__ import annotations

import unicodedata

ECHO_LIMIT = 80
"""Characters of foreign text shown at most at a time; the contract allows 200 in a message."""


class SdcliError(Exception):
    """A failure with a one-line message for a person; `exit_code` follows the contract."""

    exit_code = 1


class BadRequest(SdcliError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ModelMissing(SdcliError):
    """The model is not on this disk."""

    exit_code = 3


class LacksFiles(SdcliError):
    """A model's folder is not whole: what it has may be good."""


class WillNotFit(SdcliError):
    """The request needs more memory than the ceiling allows."""

    exit_code = 4


class CheckpointDamaged(SdcliError):
    """The step that a run would go on from cannot be used: nothing goes on with that run."""


class NotFinite(SdcliError):
    """The model produced NaN or infinity."""

    exit_code = 5


class NotFiniteInHalf(NotFinite):
    """Half precision produced NaN or infinity, and nothing but the type is known to be wrong."""


class CeilingCrossed(SdcliError):
    """The footprint crossed the ceiling; the worker is dead. `where` is the first half of the message, in a stage after
    a step. None is what nobody measured."""

    exit_code = 137

    def __init__(
        self,
        message: str,
        where: str = "",
        stage: str | None = None,
        step: int | None = None,
        footprint_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.where, self.stage, self.step, self.footprint_bytes = where or message, stage, step, footprint_bytes


class Interrupted(BaseException):
    """A signal ended the run: no failure, so that nothing on the way that bears failures swallows it."""

    def __init__(self, signum: int, note: str = "") -> None:
        what = {2: "interrupted", 15: "terminated"}.get(signum, f"stopped by signal {signum}")
        super().__init__(f"{what}; {note}" if note else what)
        self.signum, self.exit_code = signum, 128 + signum


BY_NAME: dict[str, type[SdcliError]] = {
    kind.__name__: kind
    for kind in (
        SdcliError,
        BadRequest,
        ModelMissing,
        LacksFiles,
        CheckpointDamaged,
        WillNotFit,
        NotFinite,
        NotFiniteInHalf,
        CeilingCrossed,
    )
}
"""The kinds that can cross from the worker to the host by name."""


_SHORTAGES = {
    ("can't start new thread", "Thread creation failed", "Resource temporarily unavailable", "pthread_create"): (
        "the system has no room for another thread or process: end other programs, or raise ulimit -u"
    ),
    ("Cannot allocate memory", "failed to map segment", "could not create a primitive"): (
        "the system has no memory left for this: end other programs"
    ),
    ("Too many open files",): "the system has no room for another open file: end other programs, or raise ulimit -n",
}


def shortage(said: str) -> str | None:
    """What to say where the system ran out of what others use as well, by the words of Python, libc or OpenMP."""
    return next((ours for theirs, ours in _SHORTAGES.items() if any(words in said for words in theirs)), None)


def printable(text: str) -> str:
    """`text` with control, format and surrogate characters escaped: safe to show on a terminal."""
    return "".join(
        character
        if character == " " or unicodedata.category(character)[0] not in "CZ"
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def echo(text: object, limit: int = ECHO_LIMIT) -> str:
    """Foreign text in quotes, escaped and cut in the middle to `limit` characters."""
    shown = printable(str(text)[: 4 * limit] + str(text)[-4 * limit :] if len(str(text)) > 8 * limit else str(text))
    if len(shown) > limit:
        half = (limit - 1) // 2
        shown = f"{shown[:half]}…{shown[-half:]}"
    return f"'{shown}'"
