"""Words for a person, on stderr; the product, on stdout."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from sdcli.app.asked import Note
from sdcli.errors import SdcliError, echo


@dataclass(frozen=True, slots=True)
class Voice:
    """How much is said: `quiet` nothing but errors, `verbose` more, `debug` tracebacks and what libraries print."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False

    def tell(self, note: Note) -> None:
        """A note as far as it is wanted."""
        if self.verbose if note.kind == "detail" else not self.quiet:
            say(f"warning: {note.what}" if note.kind == "warning" else note.what)

    def warn(self, what: str) -> None:
        """One line about what goes on all the same."""
        self.tell(Note(what, "warning"))

    def say(self, what: str) -> None:
        """One line that is good to know."""
        self.tell(Note(what))


def say(text: str, end: str = "\n") -> None:
    """Print on stderr whatever its encoding; a stderr that is gone is no reason to fail."""
    try:
        print(
            text.encode(sys.stderr.encoding or "ascii", "replace").decode(sys.stderr.encoding or "ascii"),
            file=sys.stderr,
            end=end,
            flush=True,
        )
    except (OSError, ValueError, AttributeError):
        return


def hand_out(text: str) -> None:
    """One line of the product on stdout: a path as its own bytes, whatever the locale."""
    try:
        sys.stdout.buffer.write(os.fsencode(text) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SdcliError(f"cannot write {echo(text)} to stdout: {error.strerror}") from error


def is_terminal() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    except (AttributeError, ValueError):
        return False
