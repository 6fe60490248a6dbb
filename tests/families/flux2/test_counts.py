"""A dry run of FLUX.2 counts what a real one takes, and nothing of its weights stays in memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli import machine
from sdcli.domain import Request
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.flux2 import network
from sdcli.families.flux2.denoiser import borrow_denoiser
from sdcli.families.flux2.family import BASE, DISTILLED, empirical_mu
from sdcli.families.registry import family_of
from sdcli.models.opened import open_model
from sdcli.plan.bytes import weights_of
from sdcli.plan.planner import BY_THE_SLICE, MARGIN_BYTES, Means, make_plan, smallest_plan
from sdcli.plan.table import table_of
from sdcli.plan.ways import SCRATCHES, way_of_steps
from sdcli.units import GIB, MIB
from sdcli.weights import sliced
from tests.engine.test_dry_run import Alive
from tests.engine.test_encodings import was_kept
from tests.networks import DTYPE_NAMES, borrowing, numbers
from tests.support import counted, run_engine, subject, tables

REQUEST = Request("a fox", "", 256, 192, 4, 1.0, 5, 1)
SIDES = 12, 16


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tiny weight is cast in several."""
    monkeypatch.setattr(sliced, "PIECE_BYTES", 4 * 64 * 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
@pytest.mark.every(2)
def test_a_step_takes_what_is_counted(klein: Path, dtype: torch.dtype) -> None:
    """Of weights in BF16: cast by the slice in FP32, and in BF16 used where they lie."""
    component, words = open_model("m", klein).parts["transformer"], numbers(1, 512, 96, dtype=dtype)
    request = replace(REQUEST, seed=int(dtype is torch.float32))
    name = DTYPE_NAMES[dtype]
    rows = tables(klein, request, dtype=name)["denoise"]
    ways = counted(klein, request, name)["denoise"].ways
    assert len(ways) == (1 if len(ways) == 1 else len(SCRATCHES))
    for scratch_bytes in (0,) if len(ways) == 1 else SCRATCHES:
        borrow = borrowing(component, dtype=dtype, table=rows, scratch_bytes=scratch_bytes)
        with borrow_denoiser(component, borrow) as denoiser:
            latents, times = numbers(1, 32, *SIDES), torch.linspace(1000, 100, 8)
            denoiser.foresee(times)
            known = [layer._parameters[n] for layer in denoiser.model.modules() for n in layer._parameters]
            stored = [
                vars(layer)["slices"]._stored.tensor for layer in denoiser.model.modules() if "slices" in vars(layer)
            ]
            with Alive([*(tensor for tensor in known if tensor is not None), *stored]) as alive:
                denoiser(latents, times[0], {"tokens": words})
            assert denoiser.lent.bytes_read > 0
        assert ways[way_of_steps(1, scratch_bytes)].live_bytes == pytest.approx(alive.peak_bytes, rel=0.03)


@pytest.mark.parametrize("stage", ["decode", "encode_image"])
@pytest.mark.parametrize("way", AUTOENCODER_WAYS)
@torch.no_grad()
def test_the_autoencoder_takes_what_is_counted(klein: Path, way: str, stage: str) -> None:
    model, request = open_model("m", klein), replace(REQUEST, strength=0.5)
    borrow = borrowing(model.parts["vae"], table=tables(klein, request)[stage], way=way)
    given: Any = numbers(1, 32, *SIDES) if stage == "decode" else {"pixels": {"rgb": numbers(1, 3, 192, 256)}}
    with getattr(network, stage)(model, request, borrow) as run, Alive() as alive:
        run(given)
    assert counted(klein, request)[stage].ways[way].live_bytes == pytest.approx(alive.peak_bytes, rel=0.02)


def test_no_plan_keeps_weights_and_all_say_why(klein: Path) -> None:
    whole = subject(klein, REQUEST)
    assert weights_of(whole.counts["denoise"], "fp32").matrices_bytes == 0
    for limit_bytes in (None, GIB):
        plan = make_plan(whole, limit_bytes, 0, Means(fused=machine.attends_fused("cpu", "fp32"))).plan
        assert (plan.residency, plan.resident_bytes, plan.prepared) == ("streamed", 0, False)
        assert BY_THE_SLICE in plan.reasons


def test_on_a_gpu_weights_by_the_slice_stay_where_they_fit(klein: Path) -> None:
    whole = replace(subject(klein, REQUEST), slices_stay=True)
    whole = replace(whole, stages=(whole.steps,))
    everything = whole.weights.matrices_bytes
    matrices = [use for use in whole.counts["denoise"].weights if use.use == "sliced"]
    assert everything == 4 * sum(use.numel for use in matrices) > 0 == whole.weights.largest_bytes
    means = Means(fused=machine.attends_fused("cpu", "fp32"), heap=False)
    resident = make_plan(whole, None, 0, means)
    least = smallest_plan(whole, 0, means)
    assert (resident.plan.residency, resident.plan.resident_bytes) == ("resident", everything)
    assert least.plan.residency == "streamed" and resident.step_s < least.step_s
    assert resident.peak_bytes >= least.peak_bytes + everything - MIB
    partial = make_plan(whole, least.peak_bytes + MARGIN_BYTES + everything // 2, 0, means).plan
    assert partial.residency == "partial" and 0 < partial.resident_bytes < everything
    for plan in (resident.plan, partial):
        rows = table_of(whole.counts["denoise"], "fp32", plan.resident_bytes, slices_stay=True)
        staying = 4 * sum(math.prod(row.shape) for row in rows if row.stays and row.use == "sliced")
        assert 0 < staying <= plan.resident_bytes
        assert (staying == everything) == (plan is resident.plan)
    assert not any(row.stays for row in table_of(whole.counts["denoise"], "fp32", everything) if row.use == "sliced")


@torch.no_grad()
def test_weights_that_stay_draw_the_same_bits(klein: Path) -> None:
    component, counts = open_model("m", klein).parts["transformer"], subject(klein, REQUEST).counts["denoise"]
    latents, words = numbers(1, 32, *SIDES), {"tokens": numbers(1, 512, 96)}
    made = []
    for resident_bytes in (0, 2**18, 2**40):
        rows = table_of(counts, "fp32", resident_bytes, slices_stay=True)
        with borrow_denoiser(component, borrowing(component, table=rows)) as denoiser:
            denoiser.foresee(torch.tensor([900.0]))
            made.append((denoiser(latents, torch.tensor(900.0), words), denoiser.lent.bytes_read))
    (streamed, all_read), (partly, some_read), (kept, none_read) = made
    assert all_read > some_read > none_read == 0
    assert torch.equal(streamed, partly) and torch.equal(streamed, kept)


def test_modulations_are_computed_for_several_steps_at_once(klein: Path) -> None:
    """Eight steps read the weights that the time alone goes through as often as one step does."""
    component, rows = open_model("m", klein).parts["transformer"], tables(klein, REQUEST)["denoise"]
    times, words = torch.linspace(1000, 100, 9), {"tokens": numbers(1, 512, 96)}
    with borrow_denoiser(component, borrowing(component, table=rows)) as denoiser, torch.no_grad():
        denoiser.foresee(times)
        read = []
        for time in times:
            before = denoiser.lent.bytes_read
            denoiser(numbers(1, 32, *SIDES), time, words)
            read.append(denoiser.lent.bytes_read - before)
    shapes = {name: origin.numel for name, origin in component.weights().items()}
    timed = sum(
        2 * numel
        for name, numel in shapes.items()
        if name.startswith(("time_", "double_", "single_stream_", "norm_out"))
    )
    assert read[0] == read[8] == read[1] + timed and set(read[1:8]) == {read[1]}


@pytest.mark.parametrize(("tokens", "steps"), [(256, 4), (1024, 4), (4096, 50), (4300, 8), (5000, 4)])
def test_the_shift_is_the_pipeline_s(klein: Path, tokens: int, steps: int) -> None:
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    assert empirical_mu(tokens, steps) == pytest.approx(compute_empirical_mu(tokens, steps), rel=1e-12)
    model = open_model("m", klein)
    times_of = family_of(model).geometry(model).flow_times
    assert times_of is not None
    times = times_of(replace(REQUEST, width=16 * tokens, height=16, steps=steps))
    assert times.mu == empirical_mu(tokens, steps) and times.sigmas[0] == 1 and len(times.sigmas) == steps


@pytest.mark.parametrize(
    ("ref", "defaults"),
    [
        ("black-forest-labs/FLUX.2-klein-base-4B", BASE),
        ("black-forest-labs/FLUX.2-klein-4B", DISTILLED),
        ("/models/database/klein", DISTILLED),
        ("klein_Base", BASE),
    ],
)
def test_steps_and_guidance_of_base_models_are_told_by_their_names(klein: Path, ref: str, defaults: Any) -> None:
    model = open_model(ref, klein)
    assert family_of(model).geometry(model).defaults == defaults


def test_from_a_kept_prompt_a_picture_needs_no_text_encoder(klein: Path) -> None:
    small = replace(REQUEST, width=64, height=64, steps=1)
    first, second = (run_engine(klein, replace(small, seed=seed), keeps=True) for seed in (1, 2))
    assert not was_kept(first) and was_kept(second)
