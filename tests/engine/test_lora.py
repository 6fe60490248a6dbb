"""Pictures with LoRA: those of the same weights merged beforehand, and the same under every ceiling."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sdcli.devices import open_device
from sdcli.domain import Sources
from sdcli.engine.count import count
from sdcli.engine.generate import generate
from sdcli.errors import NotFinite
from sdcli.models.lora import with_loras
from sdcli.models.opened import open_model
from sdcli.weights.packed import can_map, packing_of
from tests.loras import KINDS, MAGNITUDES, NAMINGS, merged, write_lora
from tests.networks import PARTIAL
from tests.support import ASTRONAUT, RESIDENT, STREAMED, draw, job_of, largest_difference, pictures

SHORT = replace(ASTRONAUT, steps=2)


def draw_with(model: Path, *loras: tuple[Path, float], **options: Any) -> torch.Tensor:
    """The first picture of a run with these."""
    device = open_device("cpu")
    device.prepare(None)
    asked = tuple((str(path), weight) for path, weight in loras)
    job = job_of(Sources(str(model), loras=asked), options.pop("request", SHORT), **options)
    return pictures(list(generate(job, device)))[0]


@pytest.mark.every(8)
@pytest.mark.parametrize(("kind", "magnitudes"), [*zip(KINDS, cycle(reversed(MAGNITUDES)), strict=False)])
def test_a_picture_of_every_kind_is_that_of_weights_merged_beforehand(
    tiny: Path, tmp_path: Path, kind: str, magnitudes: str
) -> None:
    change = write_lora(tiny, tmp_path / "x.safetensors", kind, magnitudes=magnitudes)
    expected = draw(merged(tiny, tmp_path / "m", [(change, 0.8)]), request=SHORT)
    assert largest_difference(draw(tiny, request=SHORT), expected) > 8
    assert largest_difference(draw_with(tiny, (tmp_path / "x.safetensors", 0.8)), expected) <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_file_with_a_number_that_is_none_is_named(tiny: Path, tmp_path: Path, value: float) -> None:
    write_lora(tiny, tmp_path / "good.safetensors", seed=4)
    write_lora(tiny, tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    name = next(name for name in sorted(tensors) if "unet" in name and name.endswith("lora_up.weight"))
    tensors[name].view(-1)[5] = value
    save_file(tensors, tmp_path / "x.safetensors")
    for plan in (RESIDENT, STREAMED):
        with pytest.raises(NotFinite, match=f"x.safetensors' has NaN or infinity in '{name}': fetch the LoRA again"):
            draw_with(tiny, (tmp_path / "good.safetensors", 1.0), (tmp_path / "x.safetensors", 0.8), plan=plan)


@pytest.mark.full
def test_layers_that_clip_skip_leaves_out_are_not_changed(tiny: Path, tmp_path: Path) -> None:
    request = replace(SHORT, clip_skip=2)
    change = write_lora(tiny, tmp_path / "x.safetensors")
    expected = draw(merged(tiny, tmp_path / "m", [(change, 1.0)]), request=request)
    assert largest_difference(draw_with(tiny, (tmp_path / "x.safetensors", 1.0), request=request), expected) <= 1


@pytest.mark.every(8)
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_is_understood(tiny: Path, tmp_path: Path, naming: str) -> None:
    change = write_lora(tiny, tmp_path / "x.safetensors", naming=naming)
    expected = draw(merged(tiny, tmp_path / "m", [(change, 1.0)]), request=SHORT)
    assert largest_difference(draw(tiny, request=SHORT), expected) > 8
    assert largest_difference(draw_with(tiny, (tmp_path / "x.safetensors", 1.0)), expected) <= 1


@pytest.mark.every(9)
@pytest.mark.parametrize(("kind", "magnitudes"), [*zip(KINDS, cycle(MAGNITUDES), strict=False)])
def test_the_picture_is_the_same_under_every_ceiling(tiny: Path, tmp_path: Path, kind: str, magnitudes: str) -> None:
    write_lora(tiny, tmp_path / "x.safetensors", kind, magnitudes=magnitudes)
    lora, copy = (tmp_path / "x.safetensors", 0.8), str(tmp_path / "copy")
    expected = draw_with(tiny, lora, plan=RESIDENT)
    for plan in (PARTIAL, replace(STREAMED, guidance="sequential", give_back="piece")):
        assert torch.equal(draw_with(tiny, lora, plan=plan), expected)
    if can_map():
        mapped = replace(PARTIAL, guidance="sequential", prepared=True)
        assert torch.equal(draw_with(tiny, lora, plan=mapped, prepared=copy), expected)


@pytest.mark.skipif(not can_map(), reason="packed weights cannot be mapped here")
@pytest.mark.full
def test_a_prepared_copy_is_of_the_model_s_own_weights(tiny: Path, tmp_path: Path) -> None:
    write_lora(tiny, tmp_path / "x.safetensors")
    lora, copy = (tmp_path / "x.safetensors", 0.8), str(tmp_path / "copy")
    expected = draw_with(tiny, lora, plan=RESIDENT)
    for plan in (RESIDENT, STREAMED):
        assert torch.equal(draw_with(tiny, lora, plan=replace(plan, prepared=True), prepared=copy), expected)
    plain = draw_with(tiny, plan=replace(STREAMED, prepared=True), prepared=copy)
    assert torch.equal(plain, draw(tiny, request=SHORT))


@pytest.mark.full
def test_two_files_add_up_whatever_their_order(tiny: Path, tmp_path: Path) -> None:
    changes = [
        (write_lora(tiny, tmp_path / "a.safetensors", "lora"), 0.5),
        (write_lora(tiny, tmp_path / "b.safetensors", "lokr", magnitudes="outputs", seed=5), 0.7),
        (write_lora(tiny, tmp_path / "c.safetensors", "loha", magnitudes="outputs", seed=6), -0.2),
    ]
    expected = draw(merged(tiny, tmp_path / "m", changes), request=SHORT)
    files = [(tmp_path / f"{name}.safetensors", weight) for name, (_, weight) in zip("abc", changes, strict=True)]
    assert largest_difference(draw_with(tiny, *files), expected) <= 1
    assert largest_difference(draw_with(tiny, *files[::-1]), expected) <= 1


@pytest.mark.full
def test_one_file_twice_is_twice_as_much_and_0_of_it_is_none(tiny: Path, tmp_path: Path) -> None:
    write_lora(tiny, tmp_path / "x.safetensors")
    twice = draw_with(tiny, (tmp_path / "x.safetensors", 0.4), (tmp_path / "x.safetensors", 0.4))
    assert largest_difference(twice, draw_with(tiny, (tmp_path / "x.safetensors", 0.8))) <= 1
    assert torch.equal(draw_with(tiny, (tmp_path / "x.safetensors", 0.0)), draw(tiny, request=SHORT))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_stored_type_is_what_it_holds(tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    change = write_lora(tiny, tmp_path / "x.safetensors", dtype=dtype)
    expected = draw(merged(tiny, tmp_path / "m", [(change, 1.0)]), request=SHORT)
    assert largest_difference(draw_with(tiny, (tmp_path / "x.safetensors", 1.0)), expected) <= 1


@pytest.mark.full
def test_where_no_layer_is_packed_all_is_merged(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = write_lora(tiny, tmp_path / "x.safetensors", magnitudes="outputs")
    expected = draw(merged(tiny, tmp_path / "m", [(change, 1.0)]), request=SHORT)
    monkeypatch.setattr("sdcli.weights.lend.packing_of", lambda *_: None)
    first = draw_with(tiny, (tmp_path / "x.safetensors", 1.0))
    assert largest_difference(first, expected) <= 1
    assert torch.equal(draw_with(tiny, (tmp_path / "x.safetensors", 1.0), plan=STREAMED), first)


def test_on_a_ram_disk_it_is_the_same_picture(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lora(tiny, tmp_path / "x.safetensors", dtype=torch.float16)
    expected = draw_with(tiny, (tmp_path / "x.safetensors", 1.0))
    monkeypatch.setattr("sdcli.weights.source.lies_in_memory", lambda path: path.name == "x.safetensors")
    assert torch.equal(draw_with(tiny, (tmp_path / "x.safetensors", 1.0), plan=STREAMED), expected)


def counts_with(model: Path, *loras: Path, dtype: torch.dtype = torch.float32) -> Any:
    changed = with_loras(open_model("m", model), [(str(path), 1.0) for path in loras])
    return count(changed, SHORT, open_device("cpu"), dtype)


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_counts_what_they_take(tiny: Path, tmp_path: Path, kind: str) -> None:
    write_lora(tiny, tmp_path / "x.safetensors", kind, magnitudes="outputs")
    plain, changed = counts_with(tiny), counts_with(tiny, tmp_path / "x.safetensors")
    for stage in ("encode_prompt", "denoise"):
        assert changed[stage].weights == plain[stage].weights
        for way, before in plain[stage].ways.items():
            after = changed[stage].ways[way]
            assert after.live_bytes > before.live_bytes and after.heap_bytes > before.heap_bytes
            beside = stage == "denoise" and packing_of(nn.Linear(1, 1), open_device("cpu"), torch.float32) is not None
            assert (after.flops > before.flops) == beside
    assert changed["decode"] == plain["decode"]
