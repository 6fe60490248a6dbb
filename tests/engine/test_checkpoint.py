"""A checkpoint comes back as it was, and one that was tampered with is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.schedulers import build_scheduler
from sdcli.errors import CheckpointDamaged
from sdcli.models.opened import open_model

STEPS, SHAPE = 4, torch.Size((1, 4, 8, 8))


@pytest.fixture
def scheduler(tiny: Path) -> Any:
    return build_scheduler(open_model("tiny", tiny).parts["scheduler"], STEPS)


@pytest.fixture
def blob(scheduler: Any) -> bytes:
    return Checkpoint.take(0, 2, STEPS, torch.zeros(SHAPE), torch.Generator(), scheduler).to_bytes()


def edited(blob: bytes, plain: object = None, **tensors: torch.Tensor) -> bytes:
    """With another plain table, or other tensors."""
    table = load(blob) | tensors
    if plain is not None:
        table["plain"] = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
    return save(table)


def restored(blob: bytes, scheduler: Any) -> torch.Tensor:
    kept = Checkpoint.from_bytes(blob)
    kept.require_sound(SHAPE, STEPS)
    return kept.restore(torch.Generator(), scheduler)


def test_a_checkpoint_comes_back(blob: bytes, scheduler: Any) -> None:
    assert restored(blob, scheduler).shape == SHAPE
    assert Checkpoint.from_bytes(blob).to_bytes() == blob


@pytest.mark.parametrize(
    "plain",
    [
        [0, 2, 0],
        [0, "2", 0, {}],
        [0, True, 0, {}],
        [0, 2, 0, []],
        [0, 5, 0, {}],
        [0, -1, 0, {}],
        [0, 2, 0, {"step": 1}],
        [0, 2, 0, {"config": 1}],
        [0, 2, 0, {"__class__": 1}],
        [0, 2, 0, {"timesteps": {"length": 10**9}}],
        [0, 2, 0, {"timesteps": {}}],
        {"a": 1},
        3,
    ],
    ids=str,
)
def test_one_that_was_tampered_with_is_refused(blob: bytes, scheduler: Any, plain: object) -> None:
    step = type(scheduler).step
    with pytest.raises(CheckpointDamaged, match="a checkpoint of this run is damaged"):
        restored(edited(blob, plain), scheduler)
    assert scheduler.step.__func__ is step


def test_what_is_none_and_tensors_of_others_are_refused(blob: bytes, scheduler: Any) -> None:
    blobs = [b"", b"x" * 8, blob[:-1], save({"latents": torch.zeros(1)})]
    blobs += [edited(blob, latents=torch.zeros(1, 4, 8, 9)), edited(blob, latents=torch.full(SHAPE, torch.nan))]
    blobs += [edited(blob, latents=torch.zeros(SHAPE).half()), edited(blob, generator=torch.zeros(3))]
    blobs += [edited(blob, **{"scheduler.step": torch.zeros(3)}), save(load(blob) | {"plain": torch.zeros(3)})]
    for one in blobs:
        with pytest.raises(CheckpointDamaged, match="a checkpoint of this run is damaged"):
            restored(one, scheduler)
