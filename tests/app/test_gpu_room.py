"""Without a ceiling a plan takes no more than the GPU has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli import machine
from sdcli.app.means import Prospect
from sdcli.errors import WillNotFit
from sdcli.plan.ceiling import Ceiling
from sdcli.units import GIB, MIB
from tests.host.conftest import task


def test_without_a_ceiling_a_plan_fits_the_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = machine.attends_fused("cpu", "fp32")  # as its network was counted
    monkeypatch.setattr(machine, "attends_fused", lambda device, dtype: fused)
    free = Ceiling(None, "none asked for")
    prospect = Prospect(replace(task(tiny, 2**31), device="cuda", ceiling=free))
    baseline, has = 500 * MIB, [80 * GIB]
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: has[0])
    assert prospect.plan(baseline).plan.residency == "resident"
    has[0] = baseline + 16 * MIB
    with pytest.raises(WillNotFit):
        prospect.plan(baseline)
    on_cpu = Prospect(replace(task(tiny, 2**31), ceiling=free))
    assert on_cpu.plan(baseline).plan.residency == "resident", "which has no such bound"
