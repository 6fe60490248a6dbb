"""Samplers of flow models: the library's numbers where it has them, else those of the published formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler

from sdcli.domain import Component
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.schedulers import begin_at, build_scheduler, from_picture, rehearse, step_options
from sdcli.errors import BadRequest
from sdcli.families.contract import FLOW_CLASS, FlowTimes
from sdcli.messages import StepDone
from sdcli.models.samplers import sampled, sampler_named
from tests.families.zimage.tiny import FOX, TINY
from tests.networks import numbers
from tests.split_files import made
from tests.support import draw, largest_difference, pictures, run_engine

OWN = Component("scheduler", FLOW_CLASS, {"shift": 3.0}, Path("/models/m/scheduler"))
NAMES = ("Euler", "Euler a", "Heun", "DPM++ 2M")
SHAPE = 1, 2, 3, 4


def times(steps: int) -> FlowTimes:
    return FlowTimes(tuple(1 - step / steps for step in range(steps)))


def built(name: str, steps: int = 6) -> Any:
    return build_scheduler(sampled(OWN, name, None), steps, times(steps))


def told(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """What a model might tell: it bends, and goes by the time."""
    return torch.sin(sample * 3 + timestep / 300) - sample * 0.3


def gone(
    scheduler: Any, sample: torch.Tensor, seed: int = 5, timesteps: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """The samples after each call."""
    generator, samples = torch.Generator().manual_seed(seed), []
    options = step_options(scheduler, generator)
    for timestep in scheduler.timesteps if timesteps is None else timesteps:
        sample = scheduler.step(told(sample, timestep), timestep, sample, **options).prev_sample
        samples.append(sample)
    return samples


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("first", [0, 3])
def test_heun_is_the_library_s_on_the_same_levels(steps: int, first: int) -> None:
    if first >= steps:
        return
    ours, theirs = built("Heun", steps), FlowMatchHeunDiscreteScheduler()
    theirs.set_timesteps(steps)
    assert theirs.timesteps.shape == ours.timesteps.shape and theirs.sigmas.shape == ours.sigmas.shape
    theirs.timesteps, theirs.sigmas = ours.timesteps.clone(), ours.sigmas.clone()
    begun = [begin_at(one, first) for one in (ours, theirs)]
    for one, other in zip(
        gone(ours, numbers(*SHAPE), timesteps=begun[0]), gone(theirs, numbers(*SHAPE), timesteps=begun[1]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("first", [0, 3])
def test_dpm_2m_is_the_library_s_on_the_same_levels(steps: int, first: int) -> None:
    if first >= steps:
        return
    ours, theirs = (
        built("DPM++ 2M", steps),
        DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            algorithm_type="dpmsolver++",
            solver_order=2,
            solver_type="midpoint",
            final_sigmas_type="zero",
        ),
    )
    theirs.set_timesteps(steps)
    theirs.timesteps, theirs.sigmas = ours.timesteps.clone(), ours.sigmas.clone()
    begun = [begin_at(one, first) for one in (ours, theirs)]
    for one, other in zip(
        gone(ours, numbers(*SHAPE), timesteps=begun[0]), gone(theirs, numbers(*SHAPE), timesteps=begun[1]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_euler_a_is_comfyui_s_formula() -> None:
    scheduler = built("Euler a")
    sample, generator = numbers(*SHAPE).double(), torch.Generator().manual_seed(5)
    levels = scheduler.sigmas.double().tolist()
    for ours, level, following in zip(gone(scheduler, numbers(*SHAPE)), levels, levels[1:], strict=False):
        seen = sample - level * told(sample, torch.tensor(level * 1000).double())
        down = following * (1 + (following / level - 1))
        if following == 0:
            sample = seen
        else:
            renoise = (following**2 - down**2 * (1 - following) ** 2 / (1 - down) ** 2) ** 0.5
            sample = down / level * sample + (1 - down / level) * seen
            noise = torch.randn(SHAPE, generator=generator).double()
            sample = (1 - following) / (1 - down) * sample + noise * renoise
        torch.testing.assert_close(ours, sample.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_the_model_s(name: str) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=[*times(5).sigmas], mu=2.0)
    component = replace(OWN, config={"use_dynamic_shifting": True})
    ours = build_scheduler(sampled(component, name, None), 5, replace(times(5), mu=2.0))
    assert ours.sigmas.unique().tolist() == theirs.sigmas.unique().tolist()
    assert ours.timesteps[0] == theirs.timesteps[0] and len(ours.timesteps) == 5 * ours.order - (ours.order - 1)


@pytest.mark.parametrize("name", ["Heun", "DPM++ 2M"])
def test_both_come_nearer_than_euler(name: str) -> None:
    exact = gone(built("Euler", 1000), numbers(*SHAPE))[-1]
    errors = {one: (gone(built(one, 12), numbers(*SHAPE))[-1] - exact).norm() for one in (name, "Euler")}
    assert errors[name] < errors["Euler"] / 1.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_any_number_of_steps_can_be_gone(name: str, steps: int) -> None:
    component = sampled(OWN, name, None)
    rehearse(component, steps, times=times(steps))
    for run in (0, 1, steps):
        rehearse(component, steps, run=run, times=times(steps))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_begun_from_at_the_level_of_its_first_step(name: str) -> None:
    scheduler, latents, noise = built(name), numbers(*SHAPE), numbers(*SHAPE, seed=2)
    timesteps = begin_at(scheduler, 2)
    share = timesteps[0] / 1000
    torch.testing.assert_close(
        from_picture(scheduler, latents, noise, timesteps), share * noise + (1 - share) * latents
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_goes_on_from_any_step_to_the_same_bits(name: str) -> None:
    scheduler, generator, sample = built(name), torch.Generator().manual_seed(5), numbers(*SHAPE)
    kept, timesteps = [], scheduler.timesteps
    for step, timestep in enumerate(timesteps):
        sample = scheduler.step(
            told(sample, timestep), timestep, sample, **step_options(scheduler, generator)
        ).prev_sample
        kept.append(Checkpoint.take(0, step + 1, len(timesteps), sample, generator, scheduler).to_bytes())
    for blob in kept:
        resume = Checkpoint.from_bytes(blob)
        scheduler, generator = built(name), torch.Generator()
        there = resume.restore(generator, scheduler)
        for timestep in timesteps[resume.step :]:
            options = step_options(scheduler, generator)
            there = scheduler.step(told(there, timestep), timestep, there, **options).prev_sample
        assert torch.equal(there, sample)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(TINY, tmp_path_factory.mktemp("models") / "z")


def test_each_draws_a_picture_of_its_own(model: Path) -> None:
    request = replace(FOX, width=64, height=64, steps=4)
    drawn = {}
    for name in NAMES:
        events = run_engine(model, replace(request, sampler=name))
        (drawn[name],) = pictures(events)
        if name == "Heun":
            blob = next(event.payload for event in events if isinstance(event, StepDone))
            resumed = run_engine(model, replace(request, sampler=name), payload=blob, checkpoints=(len(blob),))
            assert torch.equal(pictures(resumed)[0], drawn[name])
    assert torch.equal(drawn["Euler"], draw(model, request=request))
    assert all(largest_difference(drawn[name], drawn["Euler"]) > 1 for name in NAMES[1:])


@pytest.mark.parametrize(("said", "name"), [("heun", "Heun"), ("dpmpp_2m", "DPM++ 2M"), ("euler_ancestral", "Euler a")])
def test_people_s_names_are_known(said: str, name: str) -> None:
    assert sampler_named(said)[0] == name
    assert sampled(OWN, name, None).class_name.startswith("FlowMatch")


@pytest.mark.parametrize("name", ["DDIM", "UniPC", "LCM", "DPM++ SDE"])
def test_others_are_refused_with_those_that_go(name: str) -> None:
    said = f"--sampler {name} cannot go by the noise levels of this model".replace("+", r"\+")
    with pytest.raises(BadRequest, match=rf"{said}.*: give Euler, Euler a, Heun or DPM\+\+ 2M, or leave it out"):
        sampled(OWN, name, None)
