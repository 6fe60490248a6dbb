"""Ctrl-C, SIGTERM and SIGHUP: the first one unwinds as an Interrupted, at a moment when nothing is lost by it.

The next one leaves at once, and the worker dies with this process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sdcli.errors import Interrupted

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


PATIENCE_S = 3
"""A signal waits this long for a piece of work, which then is cut in two after all: its disk or its reader hangs."""


class _State:
    deferred = 0
    came: int | None = None


def install() -> None:
    """Answer the signals from now on, those that were ignored from the start excepted, as under nohup."""
    _State.deferred, _State.came = 0, None
    if hasattr(signal, "SIGALRM"):
        signal.signal(signal.SIGALRM, _lose_patience)
    for name in NAMES:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), interrupt)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler of all of them."""
    if _State.came is not None:
        os._exit(128 + signum)
    _State.came = signum
    if not _State.deferred:
        raise Interrupted(signum)
    if hasattr(signal, "SIGALRM"):
        signal.alarm(PATIENCE_S)


def _lose_patience(signum: int, frame: FrameType | None) -> None:
    if _State.deferred and _State.came is not None:
        raise Interrupted(_State.came)


def check() -> None:
    """Raise Interrupted for a signal that came where Python passes over exceptions, as while an object is deleted."""
    if _State.came is not None and not _State.deferred:
        raise Interrupted(_State.came)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a first signal waits: for short pieces of work that must not be cut in two."""
    before, _State.deferred = _State.came, _State.deferred + 1
    try:
        yield
    finally:
        _State.deferred -= 1
        if _State.came is not None and before is None and not _State.deferred:
            if hasattr(signal, "SIGALRM"):
                signal.alarm(0)
            raise Interrupted(_State.came)
