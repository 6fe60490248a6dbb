"""What LoRAs leave in the heap is predicted where freed memory goes back at the stage's end only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdcli.app.means import Prospect
from sdcli.domain import GiveBack, Sources
from sdcli.models.opened import open_model
from sdcli.plan.bytes import LEFT_BY_ADAPTERS_BYTES, step_bytes
from sdcli.plan.remainder import ON_CUDA, WITH_AVX512_BF16
from tests.host.conftest import task
from tests.loras import write_lora
from tests.support import RESIDENT


@pytest.mark.parametrize("give_back", ["stage", "block", "piece"])
def test_loras_of_the_denoiser_leave_gaps(tiny: Path, tmp_path: Path, give_back: GiveBack) -> None:
    write_lora(tiny, tmp_path / "x.safetensors")
    plain = task(tiny)
    changed = open_model("tiny", Sources(str(tiny), loras=((str(tmp_path / "x.safetensors"), 1.0),)))
    adapted = Prospect(replace(plain, model=changed)).subject
    assert not Prospect(plain).subject.adapted
    assert adapted.adapted
    plan, as_plain = replace(RESIDENT, give_back=give_back, attention_scratch_bytes=0), replace(adapted, adapted=False)
    gaps = LEFT_BY_ADAPTERS_BYTES if give_back == "stage" else 0
    of = WITH_AVX512_BF16
    assert step_bytes(adapted, plan, of) - step_bytes(as_plain, plan, of) == gaps
    assert step_bytes(adapted, plan, ON_CUDA) == step_bytes(as_plain, plan, ON_CUDA), "which has no such heap"
