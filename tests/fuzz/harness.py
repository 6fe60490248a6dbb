"""What a parser of foreign data may do with any bytes: give a value, or refuse them in one line. Nothing else.

It runs no program, opens no connection, loads no library by a name, and writes nowhere but in the folder that it is
given.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from sdcli.errors import SdcliError

MESSAGE_MOST = 1500
"""Characters of a refusal: the longest lists eight parts that a model lacks, each with what is wrong with it."""

Run = Callable[[bytes, Path], object]
"""Feeds a parser with bytes, in a folder that may be written to."""


@dataclass(frozen=True)
class Target:
    """A parser. `prepare` gives what feeds it, once a process; `seeds` are inputs that it takes, to begin with."""

    name: str
    prepare: Callable[[Path], Run]
    seeds: Callable[[], list[bytes]]
    structure: str
    """Of the input: `bytes`, `json`, `text`, `header`: JSON behind its length, or `config`: JSON behind one byte."""
    in_ci: int
    """Inputs in the fast tests and the full lane together."""


class Escaped(BaseException):
    """The parser did what no parser may: no handler of failures catches it."""


FORBIDDEN = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "socket.bind"}
    | {"pickle.find_class", "ctypes.dlopen", "code.__new__", "shutil.rmtree", "os.startfile", "webbrowser.open"}
)
_WRITES = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
)


class _Guard:
    """Looks at what the interpreter tells of itself (PEP 578) while a parser runs."""

    place: str | None = None
    installed = False

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        place = cls.place
        if place is None:
            return
        if event in FORBIDDEN and arguments[:1] != (None,):  # our own process is no library
            raise Escaped(f"{event} {arguments[:2]!r}")
        if event in _WRITES or (event == "open" and _is_to_write(*arguments[1:3])):
            path = arguments[event in ("os.link", "os.symlink", "os.rename")]
            told = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else place
            if not told.startswith(place) and "__pycache__" not in told:
                raise Escaped(f"{event} {told!r}")


def _is_to_write(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) != 0


@contextmanager
def guarded(place: Path) -> Iterator[None]:
    """Inside, what no parser may do raises Escaped."""
    if not _Guard.installed:
        sys.addaudithook(_Guard.hook)
        _Guard.installed = True
    _Guard.place = str(place)
    try:
        yield
    finally:
        _Guard.place = None


def fed(run: Run, data: bytes, place: Path) -> str:
    """Feed the parser; returns the refusal, or nothing for what it took. Raises whatever else the parser raises."""
    with guarded(place):
        try:
            run(data, place)
        except SdcliError as error:
            said = str(error)
        except click.UsageError as error:
            said = error.format_message()
        else:
            return ""
    assert said and said.isprintable() and len(said) <= MESSAGE_MOST, f"not one line that can be shown: {said[:3000]!r}"
    return said
