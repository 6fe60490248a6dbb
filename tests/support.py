"""What several tests use: running the engine in this process, and comparing pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.app.counts import CountBook, facts_of
from sdcli.devices import open_device
from sdcli.devices.base import DTYPES
from sdcli.domain import DtypeName, Model, Plan, Request, Sources, StageName
from sdcli.engine.count import count
from sdcli.engine.generate import generate
from sdcli.families.contract import SCHEDULER, Geometry
from sdcli.families.registry import family_of
from sdcli.families.rounds import stages_of
from sdcli.machine import cpu_packs_for
from sdcli.messages import Job, Message, PictureDone
from sdcli.models.opened import open_model
from sdcli.plan.bytes import Subject
from sdcli.plan.counts import Counts
from sdcli.plan.table import table_of
from sdcli.uses import WeightRow

RESIDENT = Plan("resident", 2**40, "batched", 16 * 2**20, ())
STREAMED = replace(RESIDENT, residency="streamed", resident_bytes=0)

ASTRONAUT = Request("a photograph of an astronaut riding a horse", "ugly", 64, 64, 4, 7.5, 1234, 1)


@pytest.fixture(scope="package", autouse=True)
def quick() -> Iterator[None]:
    """For all tests of a folder whose conftest names it: one thread, as small models only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def counts_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of a folder whose conftest names it: whatever is asked for has been counted, as in a second run."""

    def known(self: CountBook, request: Request) -> Counts:
        return counted(self._model, request, self._dtype)

    monkeypatch.setattr(CountBook, "__call__", known)


Where = Path | Sources
"""A model's folder or file, or all that it is read from."""

_COUNTED: dict[str, Counts] = {}


def counted(where: Where | Model, request: Request, dtype: DtypeName = "fp32") -> Counts:
    """What a dry run of a model counts for a request, on the CPU: the same whatever its scheduler is."""
    model = where if isinstance(where, Model) else open_model("m", where)
    networks = replace(model, parts={name: part for name, part in model.parts.items() if name != SCHEDULER.name})
    key = f"{networks.digest} {model.sources.embeddings} {facts_of(model, request)} {dtype}"
    if key not in _COUNTED:
        _COUNTED[key] = count(model, request, open_device("cpu"), DTYPES[dtype])
    return _COUNTED[key]


def geometry_of(model: Model) -> Geometry:
    """Sizes of what a model works on, as its family knows them."""
    return family_of(model).geometry(model)


def subject(folder: Where, request: Request = ASTRONAUT, dtype: DtypeName = "fp32") -> Subject:
    """What a plan is for."""
    model = open_model("m", folder)
    family = family_of(model)

    def counts_of(asked: Request) -> Counts:
        return counted(folder, asked, dtype)

    return Subject(request, dtype, stages_of(model, request), family.geometry(model), counts_of)


def tables(
    folder: Where, request: Request = ASTRONAUT, plan: Plan = RESIDENT, dtype: DtypeName = "fp32"
) -> dict[StageName, tuple[WeightRow, ...]]:
    """The table of weights of each stage, as the host makes them."""
    whole = subject(folder, request, dtype)
    height, width = whole.geometry.latent_shape(request.rounds[-1])
    samples, height, width = cpu_packs_for(height, width, dtype)
    sides = {"height": height * whole.geometry.latent_factor, "width": width * whole.geometry.latent_factor}
    layout = replace(whole, request=replace(request, prompt="", negative="", hires=None, **sides))
    made = {}
    for stage in whole.stages:
        steps = stage.times == "steps"
        laid_out = layout.counts.get(stage.function, whole.counts[stage.name])
        made[stage.name] = table_of(
            whole.counts[stage.name], dtype, plan.resident_bytes if steps else 0, laid_out, samples
        )
    return made


def job_of(
    model: Where,
    request: Request = ASTRONAUT,
    plan: Plan = RESIDENT,
    dtype: DtypeName = "fp32",
    checkpoints: tuple[int, ...] = (),
    payload: bytes = b"",
    **more: Any,
) -> Job:
    """A job with its tables of weights, as the host sends it."""
    made = tables(model, request, plan, dtype)
    sources = model if isinstance(model, Sources) else Sources(str(model))
    return Job(request, plan, sources, dtype, checkpoints, payload, tables=made, **more)


def run_engine(
    model: Where,
    request: Request = ASTRONAUT,
    plan: Plan = RESIDENT,
    dtype: DtypeName = "fp32",
    payload: bytes = b"",
    checkpoints: tuple[int, ...] = (),
    keeps: bool = False,
) -> list[Message]:
    """Every event of one job, computed on the CPU in this process: all of it, unless it `keeps` what stages give."""
    device = open_device("cpu")
    device.prepare(None)
    return list(generate(job_of(model, request, plan, dtype, checkpoints, payload, keeps=keeps), device))


def pictures(events: list[Message]) -> list[torch.Tensor]:
    """The pictures of a run, (height, width, 3), 0 to 255, as integers that can be subtracted."""
    return [
        torch.frombuffer(bytearray(event.payload), dtype=torch.uint8).view(event.height, event.width, 3).int()
        for event in events
        if isinstance(event, PictureDone)
    ]


def draw(model: Where, **options: Any) -> torch.Tensor:
    """The first picture of a run."""
    return pictures(run_engine(model, **options))[0]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of two 8-bit pictures, in dB."""
    error = (one - other).float().square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> int:
    """The most that any channel of any pixel differs, of 255."""
    return int((one - other).abs().max())
