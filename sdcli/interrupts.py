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


class _State:
    held = False
    came: int | None = None


def install() -> None:
    """Answer the signals from now on, those that were ignored from the start excepted, as under nohup."""
    _State.held, _State.came = False, None
    for name in NAMES:
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), interrupt)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler of all of them."""
    if _State.came is not None:
        os._exit(128 + signum)
    _State.came = signum
    if not _State.held:
        raise Interrupted(signum)


@contextmanager
def held() -> Iterator[None]:
    """Inside, a first signal waits: for pieces of work of less than a second that must not be cut in two."""
    _State.held, before = True, _State.came
    try:
        yield
    finally:
        _State.held = False
        if _State.came is not None and before is None:
            raise Interrupted(_State.came)
