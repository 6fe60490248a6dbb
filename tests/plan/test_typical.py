"""What is typical before anything was measured, and what a torch that was built for GPUs costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli import machine
from sdcli.app.counts import CountBook
from sdcli.app.forecast import Forecast, forecast, forecast_report
from sdcli.app.known import settled_baseline
from sdcli.app.means import Prospect
from sdcli.app.record import RunRecord, Task
from sdcli.app.run import run_task
from sdcli.cli.main import MESSAGE_LIMIT
from sdcli.domain import DeviceName, Request
from sdcli.errors import WillNotFit
from sdcli.models.opened import open_model
from sdcli.plan.baselines import build_note, hopeless_bytes, remember_baseline, typical_bytes
from sdcli.plan.ceiling import Ceiling
from sdcli.units import GIB, MIB
from tests.plan.subjects import counts_in

REQUEST = Request("a red fox", "", 64, 64, 4, 7.5, 11, 1)
COMMAND = ": pip install torch==2.14.1+cpu --index-url https://download.pytorch.org/whl/cpu"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A torch for CUDA on a machine without a GPU, until a test says otherwise."""
    monkeypatch.setattr(machine, "torch_gpu_build", lambda: "CUDA 13.0")
    monkeypatch.setattr(machine, "torch_version", lambda: "2.14.1")
    monkeypatch.setattr(machine, "gpu_memory_bytes", lambda: None)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: None)
    return monkeypatch


def asked(model: Path, limit_bytes: int | None, device: DeviceName = "cpu") -> Task:
    return Task(open_model("tiny", model), REQUEST, device, "fp32", Ceiling(limit_bytes, "asked for"))


def told(model: Path, limit_bytes: int | None) -> Forecast:
    return forecast(asked(model, limit_bytes))


def test_a_build_for_gpus_is_named_where_none_is_used_with_the_command_if_there_is_none(
    build: pytest.MonkeyPatch,
) -> None:
    assert build_note("cpu") == "your torch is built for CUDA 13.0 and takes 132 MiB more than the CPU build" + COMMAND
    assert build_note("cuda") == build_note("mps") == ""
    build.setattr(machine, "torch_version", lambda: "2.14.1+cu130")
    assert build_note("cpu").endswith(COMMAND)
    build.setattr(machine, "gpu_memory_bytes", lambda: 8 * GIB)  # whose owner wants to keep this build
    assert build_note("cpu").endswith("132 MiB more than the CPU build")
    build.setattr(machine, "torch_gpu_build", lambda: "ROCm 6.4")
    assert build_note("cpu") == "your torch is built for ROCm 6.4 and takes more memory than the CPU build"
    build.setattr(machine, "torch_gpu_build", lambda: None)
    assert build_note("cpu") == ""


def test_what_is_typical_depends_on_the_build_and_on_the_device(build: pytest.MonkeyPatch) -> None:
    gpu_build = typical_bytes("cpu")
    assert hopeless_bytes("cpu") < gpu_build < typical_bytes("cuda")
    build.setattr(machine, "torch_gpu_build", lambda: None)
    assert typical_bytes("cpu") + 100 * MIB < gpu_build


def test_plans_and_refusals_name_the_build(build: pytest.MonkeyPatch, tiny: Path) -> None:
    planned = told(tiny, 2 * GIB).planned
    assert planned is not None and planned.plan.reasons[-1] == build_note("cpu")
    with pytest.raises(WillNotFit, match=r"give --mem-limit \d+MiB.*; your torch is built for CUDA 13.0"):
        run_task(asked(tiny, 240 * MIB), RunRecord(asked(tiny, 240 * MIB)), lambda *_: None, lambda *_: None)
    build.setattr(machine, "torch_gpu_build", lambda: None)
    planned = told(tiny, 2 * GIB).planned
    assert planned is not None and not any("torch" in reason for reason in planned.plan.reasons)


def test_the_longest_refusal_is_a_line_that_is_shown_whole(build: pytest.MonkeyPatch, tiny: Path) -> None:
    build.setattr(machine, "torch_version", lambda: "2.14.1.post12+cu130")
    build.setattr(CountBook, "__call__", lambda self, request: counts_in("fp32")(request))
    longest = replace(REQUEST, width=8192, height=8192)
    needs = forecast(replace(asked(tiny, None), request=longest, prepares=False)).smallest_limit_bytes
    refusal = forecast(replace(asked(tiny, needs - 16 * MIB), request=longest, prepares=False)).refusal
    assert "may fit" in str(refusal) and "/whl/cpu" in str(refusal) and len(str(refusal)) <= MESSAGE_LIMIT


def test_what_is_not_measured_is_said_where_it_decides(build: pytest.MonkeyPatch, tiny: Path) -> None:
    least = told(tiny, None).smallest_limit_bytes
    tight, wide, tighter = told(tiny, least), told(tiny, least + 64 * MIB), told(tiny, least - 16 * MIB)
    assert tight.planned is not None and "may need more" in tight.planned.plan.reasons[-1]
    assert wide.planned is not None and "typical" not in " ".join(wide.planned.plan.reasons)
    assert tighter.refusal is not None and "may fit" in str(tighter.refusal)
    assert "may fit" not in str(told(tiny, least - 64 * MIB).refusal)
    assert forecast_report(tight.task, tight)["memory"]["baseline_measured"] is False

    remember_baseline("cpu", typical_bytes("cpu"))
    tight = told(tiny, least)
    assert tight.planned is not None and "may need more" not in " ".join(tight.planned.plan.reasons)
    assert forecast_report(tight.task, tight)["memory"]["baseline_measured"] is True


def test_a_first_run_takes_the_plan_that_was_told_unless_it_needs_less_or_much_more(
    build: pytest.MonkeyPatch, tiny: Path
) -> None:
    build.setattr(machine, "torch_gpu_build", lambda: None)
    asked = told(tiny, None).task
    assert typical_bytes("cpu") == 167 * MIB
    for measured, planned_for in ((157, 157), (167, 167), (171, 167), (177, 177)):
        assert settled_baseline(asked, None, measured * MIB) == planned_for * MIB


def test_a_processor_that_was_never_measured_gets_a_wide_remainder(build: pytest.MonkeyPatch, tiny: Path) -> None:
    needs, weights_and_live = {}, {}
    remember_baseline("cpu", 180 * MIB)
    for measured in (True, False):
        build.setattr(machine, "cpu_is_measured", lambda dtype, measured=measured: measured)
        build.setattr(machine, "cpu_batches", lambda: False)  # so that both go by the same one
        planned = told(tiny, None).planned
        assert planned is not None
        needs[measured] = {need.name: need.peak_bytes for need in planned.needs}
        steps = planned.needs[1]
        weights_and_live[measured] = steps.peak_bytes - steps.remainder_bytes
        assert Prospect(asked(tiny, None)).remainder_from == ("shipped" if measured else "wide")
    for stage in ("encode_prompt", "denoise", "decode"):
        assert needs[True][stage] < needs[False][stage] < 1.2 * needs[True][stage]
    assert weights_and_live[True] == weights_and_live[False]
    build.setattr(machine, "attends_fused", lambda device, dtype: True)  # as the counts are of
    gpu = asked(tiny, None, "mps")
    assert forecast(gpu).planned is not None and Prospect(gpu).remainder_from == "shipped"
