"""What several tests use: running the engine in this process, and comparing pictures."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.devices import open_device
from sdcli.domain import DtypeName, Plan, Request
from sdcli.engine.generate import generate
from sdcli.messages import Job, Message, PictureDone

gc.collect()
gc.freeze()  # as the worker does: a collection over all that is imported takes 0.3 s, and every stage ends in two

RESIDENT = Plan("resident", 2**40, "batched", 16 * 2**20, None, ())
STREAMED = replace(RESIDENT, residency="streamed", resident_bytes=0)

ASTRONAUT = Request("a photograph of an astronaut riding a horse", "ugly", 64, 64, 4, 7.5, 1234, 1)


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """For all tests of a folder whose conftest names it: one thread, as small models only wait for a second one, and
    no search through what is imported, though every stage ends in two collections."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    torch.set_num_threads(threads)


def run_engine(
    model: Path,
    request: Request = ASTRONAUT,
    plan: Plan = RESIDENT,
    dtype: DtypeName = "fp32",
    payload: bytes = b"",
    checkpoints: tuple[int, ...] = (),
) -> list[Message]:
    """Every event of one job, computed on the CPU in this process."""
    device = open_device("cpu")
    device.prepare(None)
    return list(generate(Job(request, plan, str(model), dtype, checkpoints, payload), device))


def pictures(events: list[Message]) -> list[torch.Tensor]:
    """The pictures of a run, (height, width, 3), 0 to 255, as integers that can be subtracted."""
    return [
        torch.frombuffer(bytearray(event.payload), dtype=torch.uint8).view(event.height, event.width, 3).int()
        for event in events
        if isinstance(event, PictureDone)
    ]


def draw(model: Path, **options: Any) -> torch.Tensor:
    """The first picture of a run."""
    return pictures(run_engine(model, **options))[0]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, in dB."""
    error = (one - other).float().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """The most that any channel of any pixel differs, of 255."""
    return int((one - other).abs().max())
