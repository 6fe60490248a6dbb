from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdcli import interrupts
from tests.host.conftest import no_worker_left, script
from tests.support import counts_at_hand

__all__ = ["counts_at_hand", "no_worker_left", "script"]


@pytest.fixture(autouse=True)
def no_signal_left() -> Iterator[None]:
    """A signal that a test sends is not the next one's."""
    yield
    interrupts._State.came, interrupts._State.deferred = None, 0
