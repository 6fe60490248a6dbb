"""Every scheduler on the list builds, steps, and can be stopped and taken up again through bytes."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sdcli.domain import Component
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.schedulers import (
    begin_at,
    build_scheduler,
    from_noise,
    from_picture,
    model_input,
    rehearse,
    restore_scheduler,
    scheduler_state,
    step_options,
)
from sdcli.errors import SdcliError
from sdcli.families.contract import FLOW_SCHEDULER, FlowTimes
from sdcli.models.configs import checked_config, class_name
from sdcli.models.schedulers import SCHEDULERS, SETTINGS, adds_noise, possible_steps
from tests.networks import numbers
from tests.support import ASTRONAUT

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
EVERY = sorted(SCHEDULERS)


def component(name: str, **settings: Any) -> Component:
    return Component("scheduler", name, {**BETAS, **settings}, Path("/models/m/scheduler"))


def step(scheduler: Any, latents: torch.Tensor, index: int, generator: torch.Generator) -> torch.Tensor:
    """One step with a model that hands back half of what it gets."""
    timestep = scheduler.timesteps[index]
    output = scheduler.scale_model_input(latents, timestep) / 2
    done: torch.Tensor = scheduler.step(output, timestep, latents, **step_options(scheduler, generator)).prev_sample
    return done


def latents() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EVERY)
def test_every_scheduler_builds_and_steps_in_fp32(name: str) -> None:
    scheduler = build_scheduler(component(name), 5)
    assert type(scheduler).__name__ == name
    assert len(scheduler.timesteps) >= 5
    states, generator = latents() * scheduler.init_noise_sigma, torch.Generator().manual_seed(2)
    for index in range(len(scheduler.timesteps)):
        states = step(scheduler, states, index, generator)
        assert states.dtype == torch.float32 and torch.isfinite(states).all()


@pytest.mark.parametrize("name", EVERY)
def test_old_configs_are_put_right_and_settings_of_others_passed_over(name: str) -> None:
    old = component(
        name, steps_offset=0, clip_sample=True, skip_prk_steps=True, solver_order=2, use_karras_sigmas=False
    )
    scheduler = build_scheduler(old, 5)
    if "steps_offset" in scheduler.config:
        assert scheduler.config.steps_offset == 1
    if "clip_sample" in scheduler.config:
        assert scheduler.config.clip_sample is False
    assert set(scheduler.config) & {"skip_prk_steps"} == ({"skip_prk_steps"} if name == "PNDMScheduler" else set())
    for key in BETAS.keys() & SETTINGS[name]:
        assert scheduler.config[key] == BETAS[key]


@pytest.mark.parametrize(
    ("name", "settings", "steps"),
    [
        ("DDIMScheduler", {"beta_schedule": "no such"}, 5),
        ("DDIMScheduler", {"timestep_spacing": "no such"}, 5),
        ("DDIMScheduler", {"trained_betas": "no list"}, 5),
        ("DDIMScheduler", {"num_train_timesteps": 10}, 11),
        ("LCMScheduler", {"original_inference_steps": 50}, 60),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "no such"}, 5),
        ("EulerDiscreteScheduler", {"interpolation_type": "no such"}, 5),
        ("UniPCMultistepScheduler", {"solver_order": "two"}, 5),
    ],
)
def test_settings_that_a_class_refuses_are_one_line(name: str, settings: dict[str, Any], steps: int) -> None:
    with pytest.raises(SdcliError, match=f"the {name} in .*cannot do {steps} steps") as caught:
        build_scheduler(component(name, **settings), steps)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", EVERY)
def test_the_table_has_the_settings_that_the_class_takes(name: str) -> None:
    takes = set(inspect.signature(type(build_scheduler(component(name), 5)).__init__).parameters) - {"self"}
    flow = {"use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"}
    euler = {"interpolation_type", "sigma_min", "sigma_max", "timestep_type"}
    euler |= {"rescale_betas_zero_snr", "final_sigmas_type"}  # of which ours for LMS is a kind
    assert SETTINGS[name] == takes - flow - (euler if name == "LMSDiscreteScheduler" else set())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("known", [50, 1000])
@pytest.mark.every(4)
def test_any_number_of_steps_can_be_gone_or_is_refused_in_one_line(name: str, known: int) -> None:
    """NaN is what diffusers' multistep solvers come to where two timesteps of a full schedule are the same."""
    settings = component(name, num_train_timesteps=known, skip_prk_steps=known == 50)
    refused = set()
    for steps in (1, 2, 3, 4, known - 1, known) if known == 50 else (1, 2, 3, known):
        for strength in (None, 0.01, 0.5, 1.0) if known == 50 else (None,):
            run = None if strength is None else replace(ASTRONAUT, steps=steps, strength=strength).steps_run
            try:
                rehearse(settings, steps, run)
            except SdcliError as error:
                assert str(error).isprintable() and f"cannot do {steps} steps with its settings" in str(error)
                refused.add((steps, strength))
    expected = {(steps, strength) for steps, strength in refused if steps not in possible_steps(name, settings.config)}
    expected |= {(steps, strength) for steps, strength in refused if strength and not adds_noise(name)}
    if name in (
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "SASolverScheduler",
        "UniPCMultistepScheduler",
    ):
        expected |= {(known, strength) for strength in (None, 0.5, 1.0)}
    assert refused <= expected


@pytest.mark.parametrize("name", EVERY)
def test_what_is_rehearsed_is_what_is_run(name: str) -> None:
    """The timesteps are diffusers' own, except that all which the model knows are no longer one too many."""
    for steps in (possible_steps(name, BETAS).start, 7):
        scheduler = build_scheduler(component(name), steps)
        theirs = type(scheduler)(
            **{key: value for key, value in (BETAS | {"steps_offset": 1}).items() if key in SETTINGS[name]}
        )
        theirs.set_timesteps(steps)
        assert torch.equal(scheduler.timesteps, theirs.timesteps)
        left = begin_at(scheduler, 2)
        assert torch.equal(left, scheduler.timesteps[2 * scheduler.order :])
    if name in ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler"):
        whole = build_scheduler(component(name, skip_prk_steps=True), 1000).timesteps
        assert set(whole.tolist()) == set(range(1000)) - ({999} if len(whole) > 1001 else set())


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sigmas", [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}], ids=str)
@pytest.mark.parametrize("skipped", [None, 0, 2, 5])
@pytest.mark.every(6)
def test_lms_without_scipy_is_diffusers_own(
    monkeypatch: pytest.MonkeyPatch, spacing: str, prediction: str, sigmas: dict[str, bool], skipped: int | None
) -> None:
    from diffusers.schedulers import scheduling_lms_discrete

    def quad(integrand: Any, begin: float, end: float, epsrel: float) -> tuple[float, float]:
        nodes, weights = np.polynomial.legendre.leggauss(11)
        middle, half = (float(begin) + float(end)) / 2, (float(end) - float(begin)) / 2
        return half * sum(w * float(integrand(middle + half * x)) for x, w in zip(nodes, weights, strict=True)), 0.0

    monkeypatch.setattr(scheduling_lms_discrete, "integrate", SimpleNamespace(quad=quad), raising=False)
    settings = {"timestep_spacing": spacing, "prediction_type": prediction, **sigmas}
    ours = build_scheduler(component("LMSDiscreteScheduler", **settings), 8)
    theirs = scheduling_lms_discrete.LMSDiscreteScheduler(**BETAS, **settings, steps_offset=1)
    theirs.set_timesteps(8)
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.sigmas, theirs.sigmas)
    drawn = []
    for scheduler in (ours, theirs):
        states, first, generator = latents() * scheduler.init_noise_sigma, skipped or 0, torch.Generator()
        if skipped is not None:
            begin_at(scheduler, skipped)
            states = scheduler.add_noise(latents(), latents().flip(3), scheduler.timesteps[skipped : skipped + 1])
        for index in range(first, 8):
            states = step(scheduler, states, index, generator)
        drawn.append(states)
    torch.testing.assert_close(*drawn, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),  # divides by zero
        ("DDIMScheduler", {"trained_betas": [0.1] * 10}),
        ("DDPMScheduler", {"variance_type": "learned"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 9, "algorithm_type": "dpmsolver"}),
        ("DPMSolverSinglestepScheduler", {"solver_order": 9}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}),
        ("EulerDiscreteScheduler", {"beta_end": 1.0, "beta_start": 1.0}),
        ("UniPCMultistepScheduler", {"solver_order": 64, "beta_start": 0.0, "beta_end": 0.0}),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": 50.0}),
    ],
)
def test_what_comes_to_nothing_is_refused_before_anything_is_loaded(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(SdcliError, match=f"the {name} in .*cannot do 20 steps with its settings") as caught:
        rehearse(component(name, **settings), 20)
    assert str(caught.value).isprintable() and "scheduler_config.json" in str(caught.value)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
@pytest.mark.every(3)
def test_a_scheduler_goes_on_from_its_state_as_if_it_had_not_stopped(name: str, stop: int) -> None:
    scheduler, generator = build_scheduler(component(name), 5), torch.Generator().manual_seed(2)
    states = latents() * scheduler.init_noise_sigma
    for index in range(stop):
        states = step(scheduler, states, index, generator)
    blob = Checkpoint.take(3, stop, 5, states, generator, scheduler).to_bytes()
    for index in range(stop, len(scheduler.timesteps)):
        states = step(scheduler, states, index, generator)

    checkpoint = Checkpoint.from_bytes(blob)
    assert (checkpoint.image, checkpoint.step) == (3, stop)
    fresh, other = build_scheduler(component(name), 5), torch.Generator().manual_seed(99)
    resumed = checkpoint.restore(other, fresh)
    for index in range(checkpoint.step, len(fresh.timesteps)):
        resumed = step(fresh, resumed, index, other)
    assert torch.equal(resumed, states)
    assert torch.equal(other.get_state(), generator.get_state())


@pytest.mark.parametrize("name", EVERY)
def test_a_checkpoint_is_the_same_after_a_round_trip(name: str) -> None:
    scheduler, generator = build_scheduler(component(name), 5), torch.Generator().manual_seed(2)
    step(scheduler, latents(), 0, generator)
    taken = Checkpoint.take(0, 1, 2, latents(), generator, scheduler)
    back = Checkpoint.from_bytes(taken.to_bytes())
    assert torch.equal(back.latents, taken.latents) and torch.equal(back.generator, taken.generator)
    assert back.scheduler_plain == taken.scheduler_plain
    assert back.scheduler_tensors.keys() == taken.scheduler_tensors.keys()
    for key, tensor in taken.scheduler_tensors.items():
        # the library's own tables have NaN where nothing is ever read
        torch.testing.assert_close(back.scheduler_tensors[key], tensor, atol=0, rtol=0, equal_nan=True)
    assert back.to_bytes() == taken.to_bytes()


def test_a_history_with_gaps_keeps_its_places() -> None:
    class Stub:
        pass

    one, other = Stub(), Stub()
    one.history, one.count, one.none = [None, torch.ones(2), None], 3, None  # type: ignore[attr-defined]
    one.empty, one.words = [], ["not", "tensors"]  # type: ignore[attr-defined]
    tensors, plain = scheduler_state(one)
    restore_scheduler(other, tensors, plain)
    history = other.history  # type: ignore[attr-defined]
    assert history[0] is None and history[2] is None and torch.equal(history[1], torch.ones(2))
    assert vars(other)["empty"] == [] and vars(other)["count"] == 3 and vars(other)["none"] is None
    assert "words" not in vars(other)


def test_a_checkpoint_does_not_change_with_the_run() -> None:
    scheduler, generator = build_scheduler(component("PNDMScheduler"), 5), torch.Generator().manual_seed(2)
    states = step(scheduler, latents(), 0, generator)
    blob = Checkpoint.take(0, 1, 2, states, generator, scheduler).to_bytes()
    kept = Checkpoint.from_bytes(blob)
    states.zero_()
    step(scheduler, states, 1, generator)
    assert kept.to_bytes() == blob and not (kept.latents == 0).all()


def test_options_of_a_step_are_those_it_takes() -> None:
    generator = torch.Generator()
    for name in EVERY:
        options = step_options(build_scheduler(component(name), 5), generator)
        assert options in ({}, {"generator": generator})
    assert step_options(build_scheduler(component("DDIMScheduler"), 5), generator) == {"generator": generator}
    assert step_options(build_scheduler(component("PNDMScheduler"), 5), generator) == {}


# Flow models


FLOW = "FlowMatchEulerDiscreteScheduler"
TIMES = FlowTimes(tuple(1 - step / 4 for step in range(4)), mu=2.0)


def flow(**settings: Any) -> Component:
    table = {"_class_name": FLOW, "use_dynamic_shifting": True, **settings}
    config = checked_config(FLOW_SCHEDULER, table, Path("scheduler_config.json"))
    return Component("scheduler", FLOW, config, Path("model"))


def test_a_flow_goes_by_its_model_s_times() -> None:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=2.0)
    ours = build_scheduler(flow(), 4, TIMES)
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.sigmas, theirs.sigmas)
    static = build_scheduler(flow(use_dynamic_shifting=False, shift=3.0), 4, TIMES)
    torch.testing.assert_close(static.sigmas, torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    rehearse(flow(), 4, times=TIMES)
    rehearse(flow(), 4, run=2, times=TIMES)


def test_a_flow_begins_between_the_picture_and_noise() -> None:
    scheduler, latents, noise = build_scheduler(flow(), 4, TIMES), numbers(1, 2, 3, 3), numbers(1, 2, 3, 3, seed=2)
    assert torch.equal(from_noise(scheduler, noise), noise)
    timesteps = begin_at(scheduler, 2)
    share = scheduler.sigmas[2]
    assert len(timesteps) == 2 and timesteps[0] == 1000 * share
    torch.testing.assert_close(
        from_picture(scheduler, latents, noise, timesteps), share * noise + (1 - share) * latents
    )
    assert model_input(scheduler, latents, timesteps[0]) is latents


def test_a_flow_that_lacks_its_shift_is_one_line() -> None:
    with pytest.raises(SdcliError, match="cannot do 4 steps with its settings"):
        rehearse(flow(), 4, times=replace(TIMES, mu=None))


@pytest.mark.parametrize(
    ("key", "value"),
    [("shift", 0), ("shift", "3"), ("time_shift_type", "cubic"), ("use_dynamic_shifting", 1), ("shift_terminal", 2.0)],
)
def test_settings_that_no_flow_has_are_refused(key: str, value: object) -> None:
    with pytest.raises(SdcliError, match=f"sets '{key}' to what no known scheduler has"):
        flow(**{key: value})


def test_a_flow_model_takes_no_other_scheduler() -> None:
    with pytest.raises(SdcliError, match="asks for the class 'DDIMScheduler': refused; a scheduler may be FlowMatch"):
        class_name(FLOW_SCHEDULER, {"_class_name": "DDIMScheduler"}, Path("scheduler_config.json"))
