"""Our pictures against diffusers' own pipelines, and every way to save memory against none."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from sdcli import machine
from sdcli.domain import Plan, Request
from sdcli.errors import SdcliError
from sdcli.messages import Message, StepDone
from sdcli.models.schedulers import SCHEDULERS
from tests.support import ASTRONAUT, RESIDENT, STREAMED, draw, largest_difference, pictures, psnr, run_engine

BF16_PSNR_FLOOR_DB = 30.0
"""BF16 against FP32, both pictures whole; measured 38 to 45 dB."""


def eta_of(scheduler: Any) -> float:
    """A scheduler's own, in place of that of diffusers' pipelines."""
    asked = inspect.signature(scheduler.step).parameters.get("eta")
    return 0.0 if asked is None else float(asked.default)


def reference(model: Path, request: Request, init: Image.Image | None = None) -> torch.Tensor:
    """What diffusers draws, in FP32 on the CPU."""
    pipeline = pipeline_of(model)
    if init is not None:
        pipeline = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"height": request.height, "width": request.width}
    if init is not None:
        options = {"image": init, "strength": request.strength}
    drawn = pipeline(
        request.prompt,
        negative_prompt=request.negative,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        eta=eta_of(pipeline.scheduler),
        **options,
    ).images[0]
    return torch.from_numpy(np.asarray(drawn).astype(np.int32))


_PIPELINES: dict[object, Any] = {}


def pipeline_of(model: Path) -> Any:
    """diffusers' own: loaded once for folders that have the same files besides the scheduler's."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.parent.name != "scheduler")
    facts = [(str(path.relative_to(model)), path.stat()) for path in files if path.name != "model_index.json"]
    key = str([(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts])
    if key not in _PIPELINES:
        _PIPELINES.clear()
        loaded = StableDiffusionPipeline.from_pretrained(
            model, dtype=torch.float32, safety_checker=None, local_files_only=True
        )
        loaded.set_progress_bar_config(disable=True)
        _PIPELINES[key] = loaded
    pipeline, folder = _PIPELINES[key], model / "scheduler"
    name = json.loads((folder / "scheduler_config.json").read_text())["_class_name"]
    given = {**pipeline.components, "scheduler": getattr(diffusers, name).from_pretrained(folder)}
    fresh = StableDiffusionPipeline(**given, requires_safety_checker=False)
    fresh.set_progress_bar_config(disable=True)
    return fresh


def gradient(width: int, height: int) -> Image.Image:
    """An init image with something in it."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def with_scheduler(model: Path, folder: Path, name: str, **settings: Any) -> Path:
    """A copy of the model with another scheduler."""
    copy = folder / "model"
    shutil.copytree(model, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    kept = {key: config[key] for key in config if key.startswith(("beta", "steps_offset", "clip_sample"))}
    path.write_text(json.dumps({"_class_name": name, **kept, **settings}))
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", name]}))
    return copy


@pytest.mark.parametrize("guidance", [7.5, 1.0, 0.0])
def test_txt2img_draws_what_diffusers_draws(tiny: Path, guidance: float) -> None:
    request = replace(ASTRONAUT, guidance=guidance)
    assert largest_difference(draw(tiny, request=request), reference(tiny, request)) <= 1


def test_a_picture_that_is_not_square_is_what_diffusers_draws(tiny: Path) -> None:
    request = replace(ASTRONAUT, width=104, height=72)
    assert largest_difference(draw(tiny, request=request), reference(tiny, request)) <= 1


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_img2img_draws_what_diffusers_draws(tiny: Path, strength: float) -> None:
    request, init = replace(ASTRONAUT, strength=strength, steps=10), gradient(64, 64)
    ours = draw(tiny, request=request, payload=init.tobytes())
    assert largest_difference(ours, reference(tiny, request, init)) <= 1


@pytest.mark.every(3)
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_draws_what_diffusers_draws_and_resumes_from_any_step(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    model, request = with_scheduler(tiny, tmp_path, name), replace(ASTRONAUT, steps=6)
    events = run_engine(model, request)
    (whole,) = pictures(events)
    if name != "LMSDiscreteScheduler" or find_spec("scipy") is not None:  # without it diffusers cannot
        assert largest_difference(whole, reference(model, request)) <= 1

    steps = [event for event in events if isinstance(event, StepDone)]
    for stopped in (steps[0], steps[len(steps) // 2], steps[-1]):
        resumed = run_engine(model, request, payload=stopped.payload, checkpoints=(len(stopped.payload),))
        assert torch.equal(pictures(resumed)[0], whole)
        assert sum(isinstance(event, StepDone) for event in resumed) == len(steps) - stopped.step


@pytest.mark.every(3)
@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"IPNDMScheduler"}))
def test_img2img_with_every_scheduler_is_what_diffusers_draws(tiny: Path, tmp_path: Path, name: str) -> None:
    model = with_scheduler(tiny, tmp_path, name)
    request, init = replace(ASTRONAUT, strength=0.5, steps=8), gradient(64, 64)
    ours = draw(model, request=request, payload=init.tobytes())
    if name != "LMSDiscreteScheduler" or find_spec("scipy") is not None:
        assert largest_difference(ours, reference(model, request, init)) <= 1


INFINITE = {"lambda_min_clipped": -math.inf}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DPM++ as diffusers saves it": ("DPMSolverMultistep", {**INFINITE, "variance_type": None, "solver_order": 2}),
    "PNDM with what DPM++ left": (
        "PNDM",
        {**INFINITE, "skip_prk_steps": True, "solver_order": 3, "thresholding": True},
    ),
    "Euler with what others left": ("EulerDiscrete", {**INFINITE, "tensor_format": "pt", "predict_epsilon": True}),
    "clipped lambdas": ("DPMSolverMultistep", {"lambda_min_clipped": -5.1}),
    "Runge-Kutta": ("PNDM", {"skip_prk_steps": False}),
    "Karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "Karras, Euler": ("EulerDiscrete", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 12.0}),
    "exponential": ("UniPCMultistep", {"use_exponential_sigmas": True}),
    "Lu": ("DPMSolverMultistep", {"use_lu_lambdas": True}),
    "Euler at the end": ("DPMSolverMultistep", {"euler_at_final": True, "solver_order": 3}),
    "SDE": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "sigma_min": ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"}),
    "single steps": ("DPMSolverSinglestep", {**INFINITE, "solver_order": 3, "lower_order_final": True}),
    "thresholds": ("DDIM", {"thresholding": True, "sample_max_value": 1.5, "clip_sample": True}),
    "no SNR at the end": ("EulerDiscrete", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    "log-linear": ("EulerDiscrete", {"interpolation_type": "log_linear"}),
    "noise": ("SASolver", {"algorithm_type": "noise_prediction", "predictor_order": 3}),
    "leading": ("DPMSolverMultistep", {"timestep_spacing": "leading"}),
    "trailing": ("UniPCMultistep", {"timestep_spacing": "trailing", "solver_order": 3}),
    "linspace": ("PNDM", {"timestep_spacing": "linspace", "skip_prk_steps": True}),
    "velocities": ("EulerAncestralDiscrete", {"prediction_type": "v_prediction"}),
    "samples": ("DDPM", {"prediction_type": "sample", "variance_type": "fixed_large"}),
    "cosine": ("DDIM", {"beta_schedule": "squaredcos_cap_v2"}),
    "EDM": ("EDMDPMSolverMultistep", {"sigma_schedule": "exponential", "sigma_max": 14.0}),
    "LCM": ("LCM", {"original_inference_steps": 20, "timestep_scaling": 8.0}),
}


@pytest.mark.every(6)
@pytest.mark.parametrize("kind", VARIANTS)
def test_settings_of_schedulers_are_those_that_diffusers_honours(tiny: Path, tmp_path: Path, kind: str) -> None:
    name, settings = VARIANTS[kind]
    model, request = with_scheduler(tiny, tmp_path, f"{name}Scheduler", **settings), replace(ASTRONAUT, steps=6)
    assert largest_difference(draw(model, request=request), reference(model, request)) <= 1
    edit, init = replace(request, strength=0.7), gradient(64, 64)
    ours = draw(model, request=edit, payload=init.tobytes())
    assert largest_difference(ours, reference(model, edit, init)) <= 1


def test_what_a_model_predicts_may_be_said_as_in_2022(tiny: Path, tmp_path: Path) -> None:
    old = with_scheduler(tiny, tmp_path / "old", "DDIMScheduler", predict_epsilon=False)
    new = with_scheduler(tiny, tmp_path / "new", "DDIMScheduler", prediction_type="sample")
    assert torch.equal(draw(old), draw(new))
    assert largest_difference(draw(new), reference(new, ASTRONAUT)) <= 1


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler"])
def test_all_steps_that_the_model_knows_can_be_drawn(tiny: Path, tmp_path: Path, name: str) -> None:
    settings = {"num_train_timesteps": 12, "skip_prk_steps": True, "timestep_spacing": "leading"}
    model = with_scheduler(tiny, tmp_path, name, **settings, original_inference_steps=12)
    events = run_engine(model, replace(ASTRONAUT, steps=12))
    steps = [event for event in events if isinstance(event, StepDone)]
    assert len(pictures(events)) == 1 and [event.step for event in steps] == list(range(1, steps[0].count + 1))


def test_settings_that_come_to_nothing_are_refused_before_any_stage(tiny: Path, tmp_path: Path) -> None:
    model = with_scheduler(tiny, tmp_path, "DDIMScheduler", trained_betas=[0.1] * 5)
    events: list[Message] = []
    with pytest.raises(SdcliError, match=r"DDIMScheduler in .*cannot do 4 steps with its settings"):
        events += run_engine(model)
    assert events == []


def test_v_prediction_is_what_diffusers_draws(tiny: Path, tmp_path: Path) -> None:
    model = with_scheduler(
        tiny, tmp_path, "DDIMScheduler", prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    assert largest_difference(draw(model), reference(model, ASTRONAUT)) <= 1


@pytest.mark.every(2)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(STREAMED, id="streamed"),
        pytest.param(replace(RESIDENT, residency="partial", resident_bytes=400_000), id="partial"),
        pytest.param(replace(RESIDENT, guidance="sequential"), id="sequential"),
        pytest.param(replace(RESIDENT, attention_scratch_bytes=4096), id="small scratch"),
        pytest.param(replace(STREAMED, guidance="sequential", attention_scratch_bytes=1), id="all at once"),
    ],
)
def test_no_plan_changes_the_picture(tiny: Path, plan: Plan, dtype: Any) -> None:
    request = replace(ASTRONAUT, width=256, height=192, steps=2)
    plain, saving = (draw(tiny, request=request, plan=p, dtype=dtype) for p in (RESIDENT, plan))
    assert largest_difference(saving, plain) <= 1


def test_bf16_is_close_to_fp32(tiny: Path) -> None:
    full, half = (draw(tiny, dtype=dtype) for dtype in ("fp32", "bf16"))
    assert psnr(half, full) >= BF16_PSNR_FLOOR_DB


def test_a_seed_is_the_same_picture_alone_and_within_a_count(tiny: Path) -> None:
    together = pictures(run_engine(tiny, replace(ASTRONAUT, count=3)))
    alone = draw(tiny, request=replace(ASTRONAUT, seed=ASTRONAUT.seed + 2))
    assert torch.equal(together[2], alone)
    assert not torch.equal(together[1], alone)


def test_prompt_negative_guidance_and_seed_all_have_a_say(tiny: Path) -> None:
    plain = draw(tiny)
    for change in ({"prompt": "a red fox"}, {"negative": "blurry fox"}, {"guidance": 3.0}, {"seed": 5}):
        assert not torch.equal(draw(tiny, request=replace(ASTRONAUT, **change)), plain), change


def test_strength_0_is_the_picture_through_the_autoencoder_alone(tiny: Path) -> None:
    init = gradient(64, 64)
    one, other = (
        run_engine(tiny, replace(ASTRONAUT, strength=0.0, prompt=prompt), payload=init.tobytes())
        for prompt in ("a", "b")
    )
    assert not any(isinstance(event, StepDone) for event in one)
    assert torch.equal(pictures(one)[0], pictures(other)[0])


@pytest.mark.full
@pytest.mark.timeout(900)
def test_full_size_txt2img_and_img2img_draw_what_diffusers_draws(sd15: Path) -> None:
    request = replace(ASTRONAUT, width=256, height=256)
    ours = draw(sd15, request=request)
    assert largest_difference(ours, reference(sd15, request)) <= 1

    init = gradient(256, 256)
    edit = replace(request, strength=0.6)
    ours = draw(sd15, request=edit, payload=init.tobytes())
    assert largest_difference(ours, reference(sd15, edit, init)) <= 1


@pytest.mark.full
@pytest.mark.timeout(900)
def test_full_size_plans_draw_the_same_bits_and_bf16_is_close_to_fp32(sd15: Path) -> None:
    request, (dtype, _) = replace(ASTRONAUT, width=256, height=256), machine.choose_dtype("cpu", "auto")
    plain = draw(sd15, request=request, dtype=dtype)
    frugal = replace(STREAMED, guidance="sequential", attention_scratch_bytes=2**20)
    assert largest_difference(draw(sd15, request=request, plan=frugal, dtype=dtype), plain) <= 1
    if dtype == "bf16":  # a processor that lacks it takes an hour
        assert psnr(plain, draw(sd15, request=request, dtype="fp32")) >= BF16_PSNR_FLOOR_DB
