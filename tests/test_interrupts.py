"""Signals that come at a bad moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from sdcli import interrupts
from sdcli.errors import Interrupted


@pytest.fixture(autouse=True)
def answered() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    interrupts.install()
    yield
    signal.signal(signal.SIGINT, before)
    interrupts._State.came = None


class Deleted:
    """What Python raises while this one goes is printed and passed over."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        list(range(1000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_was_passed_over_is_raised_at_the_next_check() -> None:
    interrupts.check()
    Deleted()
    with pytest.raises(Interrupted, match="interrupted"):
        interrupts.check()


def test_a_check_waits_as_a_signal_does() -> None:
    with pytest.raises(Interrupted), interrupts.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.check()
        held = True
    assert held
