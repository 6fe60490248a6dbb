"""Every sampler with every schedule: diffusers' numbers where it has them, else those of the published formulas."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from sdcli.domain import Component
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.samplers.levels import ays, quantiles, simple
from sdcli.engine.schedulers import begin_at, build_scheduler, rehearse, step_options
from sdcli.families.sd.family import ALIGNED_LEVELS
from sdcli.messages import StepDone
from sdcli.models.samplers import SAMPLERS, SCHEDULES, sampled
from tests.support import ASTRONAUT, draw, largest_difference, pictures, run_engine

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
OWN = Component("scheduler", "PNDMScheduler", {**BETAS, "skip_prk_steps": True}, Path("/models/m/scheduler"))
STEPS = 6

EVERY = [
    (sampler.name, schedule.name)
    for sampler in SAMPLERS
    for schedule in SCHEDULES
    if schedule.name in {"model", *sampler.schedules}
]

MULTISTEP = {"solver_order": 2, "solver_type": "midpoint", "algorithm_type": "dpmsolver++"}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", MULTISTEP),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {"clip_sample": False}),
    "TCD": ("TCDScheduler", {"clip_sample": False}),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
}
"""diffusers' class and settings, as its documentation has them for A1111's names."""

BY_SETTING = {
    "model": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "trailing": {"timestep_spacing": "trailing"},
}
ONLY = {"Euler a": ["model", "trailing"], "LCM": ["model"], "TCD": ["model"]}
"""Of these, what diffusers' classes heed."""

IN_DIFFUSERS = [
    (sampler, schedule)
    for sampler, schedule in EVERY
    if sampler in THEIRS and schedule in ONLY.get(sampler, BY_SETTING)
]


_BUILT: dict[tuple[str, str, int], Any] = {}


def of(sampler: str, schedule: str, steps: int = STEPS) -> Any:
    if (sampler, schedule, steps) not in _BUILT:
        built = build_scheduler(sampled(OWN, sampler, schedule, ALIGNED_LEVELS), steps)
        _BUILT[sampler, schedule, steps] = built
    return copy.deepcopy(_BUILT[sampler, schedule, steps])


def noise() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def told(sample: torch.Tensor, timestep: Any) -> torch.Tensor:
    """What a model that knows nothing says: no line, and another one at another time."""
    return torch.tanh(sample * (1 + float(timestep) / 2000)) * 0.9


def run(scheduler: Any, first: int = 0) -> torch.Tensor:
    states, generator = noise() * scheduler.init_noise_sigma, torch.Generator().manual_seed(2)
    timesteps = scheduler.timesteps
    if first:
        timesteps = begin_at(scheduler, first)
        states = scheduler.add_noise(noise().flip(3), noise(), timesteps[:1])
    options = step_options(scheduler, generator)
    for timestep in timesteps:
        output = told(scheduler.scale_model_input(states, timestep), timestep)
        states = scheduler.step(output, timestep, states, **options).prev_sample
    return states


@pytest.mark.parametrize(("sampler", "schedule"), IN_DIFFUSERS)
@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.every(3)
def test_what_diffusers_has_is_what_diffusers_has(sampler: str, schedule: str, first: int) -> None:
    name, settings = THEIRS[sampler]
    theirs = getattr(diffusers, name)(**BETAS, **settings, **BY_SETTING[schedule])
    if "steps_offset" in theirs.config:
        theirs.register_to_config(steps_offset=1)
    theirs.set_timesteps(STEPS)
    assert torch.equal(run(of(sampler, schedule), first), run(theirs, first))


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Any:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        tiny, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.every(2)
@pytest.mark.parametrize("sampler", THEIRS)
def test_pictures_are_those_of_diffusers_own_pipeline(tiny: Path, pipeline: Any, sampler: str) -> None:
    schedule = "karras" if (sampler, "karras") in IN_DIFFUSERS else "trailing"
    schedule = schedule if (sampler, schedule) in EVERY else "model"
    name, settings = THEIRS[sampler]
    own = pipeline.scheduler
    request = replace(ASTRONAUT, steps=5, sampler=sampler, schedule=schedule)
    try:
        pipeline.scheduler = getattr(diffusers, name).from_config(own.config, **settings, **BY_SETTING[schedule])
        drawn = pipeline(
            request.prompt,
            negative_prompt=request.negative,
            height=64,
            width=64,
            num_inference_steps=5,
            guidance_scale=request.guidance,
            generator=torch.Generator().manual_seed(request.seed),
            eta=0.3 if sampler == "TCD" else 0.0,  # as TCD's card has it
        ).images[0]
    finally:
        pipeline.scheduler = own
    theirs = torch.from_numpy(np.asarray(drawn).astype(np.int32))
    assert largest_difference(draw(tiny, request=request), theirs) <= 1


# k-diffusion's functions, written down from its paper and source with the noise as an argument


Model = Callable[[torch.Tensor, float], torch.Tensor]
Noise = Callable[[], torch.Tensor]


def down_and_up(begin: float, end: float) -> tuple[float, float]:
    up = min(end, (end**2 * (begin**2 - end**2) / begin**2) ** 0.5)
    return (end**2 - up**2) ** 0.5, up


def euler_a(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    for i in range(len(sigmas) - 1):
        down, up = down_and_up(sigmas[i], sigmas[i + 1])
        x = x + (x - model(x, sigmas[i])) / sigmas[i] * (down - sigmas[i])
        if sigmas[i + 1] > 0:
            x = x + fresh() * up
    return x


def dpmpp_2s_a(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        down, up = down_and_up(sigmas[i], sigmas[i + 1])
        if down == 0:
            x = x + (x - denoised) / sigmas[i] * (down - sigmas[i])
        else:
            t, t_next = -math.log(sigmas[i]), -math.log(down)
            h = t_next - t
            s = t + h / 2
            x_2 = (math.exp(-s) / math.exp(-t)) * x - math.expm1(-h / 2) * denoised
            x = (math.exp(-t_next) / math.exp(-t)) * x - math.expm1(-h) * model(x_2, math.exp(-s))
        if sigmas[i + 1] > 0:
            x = x + fresh() * up
    return x


def dpmpp_sde(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        if sigmas[i + 1] == 0:
            x = x + (x - denoised) / sigmas[i] * (0 - sigmas[i])
            continue
        t, t_next = -math.log(sigmas[i]), -math.log(sigmas[i + 1])
        s = t + (t_next - t) / 2
        motion = fresh() * math.sqrt(sigmas[i] - math.exp(-s))  # Brownian, from sigmas[i] down to the level of s
        down, up = down_and_up(sigmas[i], math.exp(-s))
        x_2 = (down / sigmas[i]) * x - math.expm1(t + math.log(down)) * denoised
        denoised_2 = model(x_2 + motion / math.sqrt(sigmas[i] - math.exp(-s)) * up, math.exp(-s))
        motion = motion + fresh() * math.sqrt(math.exp(-s) - sigmas[i + 1])
        down, up = down_and_up(sigmas[i], sigmas[i + 1])
        x = (down / sigmas[i]) * x - math.expm1(t + math.log(down)) * denoised_2
        x = x + motion / math.sqrt(sigmas[i] - sigmas[i + 1]) * up
    return x


def dpmpp_2m_v2(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    before = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        if before is None or sigmas[i + 1] == 0:
            x = sigmas[i + 1] / sigmas[i] * x - (sigmas[i + 1] / sigmas[i] - 1) * denoised
        else:
            h, last = -math.log(sigmas[i + 1] / sigmas[i]), -math.log(sigmas[i] / sigmas[i - 1])
            r = max(h, last) / min(h, last)
            mixed = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * before
            x = sigmas[i + 1] / sigmas[i] * x - (math.exp(-(h + last) / 2) - 1) * mixed
        before = denoised
    return x


def ipndm(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    d = list[torch.Tensor]()
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        d.append((x - denoised) / sigmas[i])
        step = sigmas[i + 1] - sigmas[i]
        if sigmas[i + 1] == 0:
            x = denoised
        elif i == 0:
            x = x + step * d[-1]
        elif i == 1:
            x = x + step * (3 * d[-1] - d[-2]) / 2
        elif i == 2:
            x = x + step * (23 * d[-1] - 16 * d[-2] + 5 * d[-3]) / 12
        else:
            x = x + step * (55 * d[-1] - 59 * d[-2] + 37 * d[-3] - 9 * d[-4]) / 24
    return x


def ipndm_v(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    d = list[torch.Tensor]()
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i])
        d.append((x - denoised) / sigmas[i])
        h = [sigmas[i + 1 - k] - sigmas[i - k] for k in range(min(i, 3) + 1)]
        c = [1.0, 0.0, 0.0, 0.0]
        if i > 0:
            c[0], c[1] = (2 + h[0] / h[1]) / 2, -(h[0] / h[1]) / 2
        if i > 1:
            one = (1 - h[0] / (3 * (h[0] + h[1])) * (h[0] * (h[0] + h[1])) / (h[1] * (h[1] + h[2]))) / 2
            c[0], c[1], c[2] = c[0] + one, c[1] - (1 + h[1] / h[2]) * one, one * h[1] / h[2]
        if i > 2:
            two = (1 - h[0] / (3 * (h[0] + h[1]))) / 2
            two += (1 - h[0] / (2 * (h[0] + h[1]))) * h[0] / (6 * (h[0] + h[1] + h[2]))
            two *= h[0] * (h[0] + h[1]) * (h[0] + h[1] + h[2])
            two /= h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3])
            q = h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
            c[0] += two
            c[1] -= (1 + h[1] / h[2] + q) * two
            c[2] += (h[1] / h[2] + q * (1 + h[2] / h[3])) * two
            c[3] = -two * q * h[1] / h[2]
        moved = sum(c[k] * d[-1 - k] for k in range(len(h)))
        x = denoised if sigmas[i + 1] == 0 else x + h[0] * moved
    return x


def dpmpp_3m_sde(model: Model, x: torch.Tensor, sigmas: list[float], fresh: Noise) -> torch.Tensor:
    d1 = d2 = h1 = h2 = None
    for i in range(len(sigmas) - 1):
        d0 = model(x, sigmas[i])
        if sigmas[i + 1] == 0:
            return d0
        h = math.log(sigmas[i]) - math.log(sigmas[i + 1])
        eta = h * 2
        x = math.exp(-eta) * x - math.expm1(-eta) * d0
        phi2 = math.expm1(-eta) / eta + 1
        if d2 is not None and d1 is not None and h1 is not None and h2 is not None:
            r0, r1 = h1 / h, h2 / h
            a, b = (d0 - d1) / r0, (d1 - d2) / r1
            x = x + phi2 * (a + (a - b) * r0 / (r0 + r1)) - (phi2 / eta - 0.5) * (a - b) / (r0 + r1)
        elif d1 is not None and h1 is not None:
            x = x + phi2 * (d0 - d1) / (h1 / h)
        x = x + fresh() * sigmas[i + 1] * math.sqrt(-math.expm1(-2 * h))
        d1, d2, h1, h2 = d0, d1, h, h1
    return x


FORMULAS = {
    "Euler a": euler_a,
    "DPM++ 2S a": dpmpp_2s_a,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M v2": dpmpp_2m_v2,
    "iPNDM": ipndm,
    "iPNDM_v": ipndm_v,
    "DPM++ 3M SDE": dpmpp_3m_sde,
}


@pytest.mark.parametrize(("sampler", "schedule"), [one for one in EVERY if one[0] in FORMULAS])
def test_what_is_ours_is_the_published_formula(sampler: str, schedule: str) -> None:
    scheduler, euler = of(sampler, schedule), of("Euler", schedule)
    sigmas, generator = euler.sigmas.double().tolist(), torch.Generator().manual_seed(2)
    known = (((1 - euler.alphas_cumprod) / euler.alphas_cumprod) ** 0.5).double().log().numpy()

    def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
        timestep = np.interp(math.log(sigma), known, np.arange(len(known)))
        return x - sigma * told(x / (sigma**2 + 1) ** 0.5, timestep)

    def fresh() -> torch.Tensor:
        return torch.randn(1, 4, 8, 8, generator=generator).double()

    expected = FORMULAS[sampler](denoised, noise().double() * float(euler.init_noise_sigma), sigmas, fresh)
    torch.testing.assert_close(run(scheduler).double(), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("sampler", "schedule"), EVERY)
@pytest.mark.every(3)
def test_a_sampler_goes_on_from_any_step_to_the_same_bits(sampler: str, schedule: str) -> None:
    scheduler, generator = of(sampler, schedule), torch.Generator().manual_seed(2)
    states, blobs = noise() * scheduler.init_noise_sigma, list[bytes]()
    options, count = step_options(scheduler, generator), len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        blobs.append(Checkpoint.take(0, step, count, states, generator, scheduler).to_bytes())
        output = told(scheduler.scale_model_input(states, timestep), timestep)
        states = scheduler.step(output, timestep, states, **options).prev_sample
    assert states.dtype == torch.float32 and torch.isfinite(states).all()
    for blob in blobs[1:]:
        checkpoint, fresh, other = Checkpoint.from_bytes(blob), of(sampler, schedule), torch.Generator()
        resumed, options = checkpoint.restore(other, fresh), step_options(fresh, other)
        for timestep in fresh.timesteps[checkpoint.step :]:
            output = told(fresh.scale_model_input(resumed, timestep), timestep)
            resumed = fresh.step(output, timestep, resumed, **options).prev_sample
        assert torch.equal(resumed, states)


@pytest.mark.every(12)
@pytest.mark.parametrize(("sampler", "schedule"), EVERY)
def test_any_number_of_steps_can_be_gone(sampler: str, schedule: str) -> None:
    component = sampled(OWN, sampler, schedule, ALIGNED_LEVELS)
    for steps, run in ((1, None), (1, 1), (12, 5)):
        rehearse(component, steps, run)


@pytest.mark.full
def test_a_picture_resumes_from_any_step_of_two_calls(tiny: Path) -> None:
    request = replace(ASTRONAUT, sampler="DPM++ SDE", schedule="karras")
    events = run_engine(tiny, request)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert len(steps) == 2 * request.steps - 1
    for stopped in steps:
        resumed = run_engine(tiny, request, payload=stopped.payload, checkpoints=(len(stopped.payload),))
        assert torch.equal(pictures(resumed)[0], pictures(events)[0])


def test_quantiles_of_the_beta_distribution() -> None:
    """From its definition, summed up numerically: u^(a-1) (1-u)^(a-1) over u = sin(v)^2 has no poles."""
    v = np.linspace(0, math.pi / 2, 200_001)
    density = 2 * (np.sin(v) * np.cos(v)) ** (2 * 0.6 - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    shares = np.array([0.001, 0.05, 0.3, 0.5, 0.8, 0.99])
    np.testing.assert_allclose(quantiles(shares), np.interp(shares, below / below[-1], np.sin(v) ** 2), rtol=1e-3)
    np.testing.assert_array_equal(quantiles(np.array([0.0, 1.0])).round(12), [0, 1])


def test_schedules_of_levels_are_the_published_ones() -> None:
    np.testing.assert_allclose(ays(ALIGNED_LEVELS, 10), ALIGNED_LEVELS[:-1])
    np.testing.assert_allclose(ays(ALIGNED_LEVELS, 5), ALIGNED_LEVELS[:-1:2])
    np.testing.assert_array_equal(simple(np.arange(1000.0), 4), [999, 749, 499, 249])
    levels = of("Euler", "beta", 20).sigmas
    assert levels[-1] == 0 and levels[0].item() == pytest.approx(14.6146, abs=1e-3)
    assert levels[-2].item() == pytest.approx(0.0292, abs=1e-3)


# Models whose noisiest level is noise alone


ZERO_SNR = Component(
    "scheduler",
    "DDIMScheduler",
    {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    Path("/models/m/scheduler"),
)


@pytest.mark.parametrize("sampler", ["Heun", "DPM2", "DPM2 a", "DEIS"])
@pytest.mark.parametrize("schedule", ["model", "karras"])
def test_samplers_that_cannot_begin_with_noise_alone_begin_as_with_other_models(sampler: str, schedule: str) -> None:
    scheduler = build_scheduler(sampled(ZERO_SNR, sampler, schedule), STEPS)
    name, settings = THEIRS[sampler]
    theirs = getattr(diffusers, name)(**BETAS, **settings, **BY_SETTING[schedule], timestep_spacing="trailing")
    theirs.set_timesteps(STEPS)
    assert torch.equal(scheduler.sigmas, theirs.sigmas) and float(scheduler.sigmas[0]) < 15


@pytest.mark.parametrize("schedule", ["karras", "exponential", "beta", "ays"])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "UniPC", "LMS", "DPM++ 3M SDE"])
def test_one_level_is_noise_alone_and_the_others_show_something(sampler: str, schedule: str) -> None:
    component = sampled(ZERO_SNR, sampler, schedule, ALIGNED_LEVELS)
    scheduler, one = build_scheduler(component, 12), build_scheduler(component, 1)
    following = ((1 - scheduler.alphas_cumprod[916]) / scheduler.alphas_cumprod[916]) ** 0.5
    assert float(scheduler.sigmas[0]) > 4000 and float(one.sigmas[0]) > 4000
    second = ALIGNED_LEVELS[0] if schedule == "ays" else float(following)
    assert float(scheduler.sigmas[1]) == pytest.approx(second, rel=1e-3)
    rehearse(component, 12)


def test_karras_is_karras_between_the_ends() -> None:
    ours = build_scheduler(sampled(ZERO_SNR, "Euler", "karras"), 12).sigmas
    most, least = float(ours[1]), float(ours[-2])
    shares = np.linspace(0, 1, 11)
    wanted = (most ** (1 / 7) + shares * (least ** (1 / 7) - most ** (1 / 7))) ** 7
    np.testing.assert_allclose(ours[1:-1].numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["LMS", "iPNDM", "iPNDM_v"])
@pytest.mark.parametrize("steps", [12, 1000])
def test_what_noise_alone_tells_is_no_part_of_later_steps(sampler: str, steps: int) -> None:
    """A model that sees the same picture everywhere has it after every step, whatever it said of noise alone."""
    scheduler = build_scheduler(sampled(ZERO_SNR, sampler, None), steps)
    states, picture = noise() * scheduler.init_noise_sigma, noise().flip(3)
    for index, timestep in enumerate(scheduler.timesteps):
        level, following = scheduler.sigmas[index : index + 2]
        seen = 50 * picture if level > 1000 else picture
        # v, of which the sampler makes the picture again
        output = (states / (level**2 + 1) - seen) * (level**2 + 1) ** 0.5 / level
        slope = (states - picture) / level
        states = scheduler.step(output, timestep, states).prev_sample
        if 1 < level < 1000:
            torch.testing.assert_close((states - picture) / following, slope, rtol=2e-2, atol=2e-2)
    assert len(scheduler.slopes) == 4
