"""Pictures with LoRA: those of the same weights merged beforehand, and the same under every ceiling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.devices import open_device
from sdcli.engine.generate import generate
from sdcli.weights.packed import can_map
from tests.loras import KINDS, MAGNITUDES, NAMINGS, merged, write_lora
from tests.networks import PARTIAL
from tests.support import ASTRONAUT, RESIDENT, STREAMED, draw, job_of, largest_difference, pictures

SHORT = replace(ASTRONAUT, steps=2)


def draw_with(model: Path, *loras: tuple[Path, float], **options: Any) -> torch.Tensor:
    """The first picture of a run with these."""
    device = open_device("cpu")
    device.prepare(None)
    asked = tuple((str(path), weight) for path, weight in loras)
    job = job_of(model, options.pop("request", SHORT), loras=asked, **options)
    return pictures(list(generate(job, device)))[0]


@pytest.mark.parametrize("magnitudes", MAGNITUDES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_every_kind_is_that_of_weights_merged_beforehand(
    tiny: Path, tmp_path: Path, kind: str, magnitudes: str
) -> None:
    change = write_lora(tiny, tmp_path / "x.safetensors", kind, magnitudes=magnitudes)
    expected = draw(merged(tiny, tmp_path / "m", [(change, 0.8)]), request=SHORT)
    assert largest_difference(draw(tiny, request=SHORT), expected) > 8
    for plan in (RESIDENT, STREAMED):
        assert largest_difference(draw_with(tiny, (tmp_path / "x.safetensors", 0.8), plan=plan), expected) <= 1


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_understood(tiny: Path, tmp_path: Path, naming: str) -> None:
    change = write_lora(tiny, tmp_path / "x.safetensors", naming=naming)
    expected = draw(merged(tiny, tmp_path / "m", [(change, 1.0)]), request=SHORT)
    assert largest_difference(draw(tiny, request=SHORT), expected) > 8
    assert largest_difference(draw_with(tiny, (tmp_path / "x.safetensors", 1.0)), expected) <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magnitudes", MAGNITUDES)
def test_the_picture_is_the_same_under_every_ceiling(tiny: Path, tmp_path: Path, kind: str, magnitudes: str) -> None:
    write_lora(tiny, tmp_path / "x.safetensors", kind, magnitudes=magnitudes)
    lora, copy = (tmp_path / "x.safetensors", 0.8), str(tmp_path / "copy")
    expected = draw_with(tiny, lora, plan=RESIDENT)
    one = replace(PARTIAL, guidance="sequential")
    for plan in (PARTIAL, one, STREAMED, replace(STREAMED, guidance="sequential", give_back="piece")):
        assert torch.equal(draw_with(tiny, lora, plan=plan), expected)
    for plan in (RESIDENT, one, STREAMED) if can_map() else ():
        assert torch.equal(draw_with(tiny, lora, plan=replace(plan, prepared=True), prepared=copy), expected)
    if can_map():  # the copy is of the model's own weights
        plain = draw_with(tiny, plan=replace(STREAMED, prepared=True), prepared=copy)
        assert torch.equal(plain, draw(tiny, request=SHORT))
