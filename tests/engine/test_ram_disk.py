"""A model on a RAM disk: mapped pages count there, so none stays mapped, and the picture is the same."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.domain import Plan
from sdcli.engine.synthesize import write_model
from sdcli.models.disks import lies_in_memory, model_in_memory
from sdcli.models.opened import open_model
from sdcli.units import MIB
from sdcli.weights.packed import can_map
from tests.conftest import TINY
from tests.support import ASTRONAUT, RESIDENT, STREAMED, job_of, pictures, run_engine

SHM = Path("/dev/shm")
pytestmark = [pytest.mark.skipif(not SHM.is_dir() or not lies_in_memory(SHM), reason="no RAM disk here")]

PLANS = {"resident": RESIDENT, "streamed": STREAMED, "partial": replace(STREAMED, residency="partial")}
PLANS["partial"] = replace(PLANS["partial"], resident_bytes=20 * MIB)
SHORT = replace(ASTRONAUT, steps=1, prompt=" ".join(f"word{n}" for n in range(60)))


@pytest.fixture(scope="module")
def medium() -> Iterator[Path]:
    """Some 60 MiB of weights on a RAM disk."""
    config: dict[str, Any] = copy.deepcopy(TINY)
    config["unet"] |= {"block_out_channels": [128, 320], "norm_num_groups": 32}
    config["vae"] |= {"block_out_channels": [32, 64, 128, 256]}
    config["text_encoder"] |= {"vocab_size": 15000, "bos_token_id": 14998, "eos_token_id": 14999, "hidden_size": 256}
    config["text_encoder"] |= {"intermediate_size": 1024, "pad_token_id": 14999}
    config["unet"]["cross_attention_dim"] = 256
    folder = Path(tempfile.mkdtemp(dir=SHM, prefix="sdcli-test-"))
    try:
        for _ in write_model(config, folder):
            pass
        yield folder
    finally:
        shutil.rmtree(folder)


def shared_bytes() -> int:
    return int(re.findall(r"RssShmem:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


@contextmanager
def most_shared() -> Iterator[list[int]]:
    """The most shared memory that this process has inside, more than before."""
    before, most, done = shared_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], shared_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.every(3)
def test_no_page_of_the_model_stays_mapped_and_the_picture_is_the_same(medium: Path, tmp_path: Path, plan: str) -> None:
    on_disk = Path(shutil.copytree(medium, tmp_path / "model"))
    weights = sum(path.stat().st_size for path in medium.rglob("*.safetensors"))
    largest = max(origin.info.nbytes for origin in open_model("m", medium).parts["unet"].weights().values())
    assert model_in_memory(open_model("m", medium)) and weights > 40 * MIB
    with most_shared() as most:
        drawn = pictures(run_engine(medium, SHORT, PLANS[plan]))[0]
    assert most[0] < 8 * MIB + largest // 4
    assert torch.equal(drawn, pictures(run_engine(on_disk, SHORT, PLANS[plan]))[0])


@pytest.mark.skipif(not can_map(), reason="packed weights cannot be mapped here")
@pytest.mark.full
def test_making_a_copy_and_drawing_from_it_leave_nothing_mapped(medium: Path, tmp_path: Path) -> None:
    from sdcli.devices import open_device
    from sdcli.engine.generate import generate

    plan: Plan = replace(STREAMED, prepared=True)
    job = job_of(medium, SHORT, plan, prepared=str(tmp_path / "model" / "fp32-0123456789abcdef"))
    for _ in ("made", "used"):
        with most_shared() as most:
            drawn = pictures(list(generate(job, open_device("cpu"))))[0]
        assert most[0] < 10 * MIB
        assert torch.equal(drawn, pictures(run_engine(medium, SHORT))[0])
