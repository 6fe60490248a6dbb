"""What other programs take of the processor: the system's time less our own."""

from __future__ import annotations

import os
from collections import namedtuple

import psutil
import pytest

from sdcli.app import disturbance
from sdcli.app.disturbance import Neighbours

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest")


@pytest.mark.parametrize(
    ("seconds", "busy", "own", "share"),
    [
        (10.0, 8.0, 8.0, 0.0),
        (10.0, 12.0, 8.0, 0.1),
        (10.0, 45.0, 1.0, 1.0),
        (10.0, 7.9, 8.0, 0.0),
        (0.1, 0.4, 0.0, None),
    ],
)
def test_the_share_of_others_is_what_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, seconds: float, busy: float, own: float, share: float | None
) -> None:
    clock, system = [100.0], [Times(50.0, 1, 20.0, 900, 30, 1, 1, 0, 7)]
    ours = [os.times_result((5.0, 1.0, 2.0, 0.5, 0.0))]
    monkeypatch.setattr(disturbance.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(psutil, "cpu_times", lambda: system[0])
    monkeypatch.setattr(os, "times", lambda: ours[0])
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    neighbours = Neighbours()
    clock[0] += seconds
    system[0] = system[0]._replace(user=50.0 + busy / 2, steal=busy / 2, idle=9999.0, iowait=99.0, guest=70.0)
    ours[0] = os.times_result((5.0 + own / 4, 1.0, 2.0 + own / 2, 0.5 + own / 4, 0.0))
    assert neighbours.share() == share
