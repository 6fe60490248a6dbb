"""diffusers' schedulers by name from our own table, and their state as something that can be kept."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sdcli.domain import Component
from sdcli.engine.samplers.levels import levels_by
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import SCHEDULER, FlowTimes
from sdcli.models.schedulers import FLOW_SCHEDULERS, SCHEDULERS

TRIPPED_OVER = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What comes of settings that a class does not check, in its constructor or in a step."""

OURS = {
    "LMSDiscreteScheduler": "sdcli.engine.samplers.lms",
    **dict.fromkeys(
        (
            "DPMSolverAncestral",
            "DPMSolverModified",
            "DPMSolverSDE",
            "DPMSolverThird",
            "EulerAncestral",
            "ImprovedPNDM",
            "VariablePNDM",
        ),
        "sdcli.engine.samplers.solvers",
    ),
    **dict.fromkeys(("FlowMatchAncestral", "FlowMatchHeun", "FlowMatchSolver"), "sdcli.engine.samplers.flow"),
}
"""Classes of ours, and the module of each."""

Scalar = int | float | bool | str | None


def build_scheduler(component: Component, steps: int, times: FlowTimes | None = None) -> Any:
    """The model's own scheduler, from its checked config, set to so many steps, of a flow model at its `times`.

    As diffusers does, settings of another scheduler are passed over, and the two that old configs have wrong
    for Stable Diffusion are put right (diffusers, StableDiffusionPipeline.__init__). Raises SdcliError for
    settings that the class refuses, and for more steps than it can take.
    """
    with _told(component, steps):
        if component.class_name.startswith("FlowMatch"):
            return _build_flow(component, steps, times)
        scheduler = _build(component, steps, offset=1)
        known = scheduler.config.num_train_timesteps
        if int(scheduler.timesteps.max()) >= known and not hasattr(scheduler, "sigmas"):
            # with all steps that the model knows, the offset of 1 begins one past the last: diffusers fails there
            scheduler = _build(component, steps, offset=0)
    return scheduler


def _build(component: Component, steps: int, offset: int) -> Any:
    name, config = component.class_name, component.config
    kind = getattr(importlib.import_module(OURS.get(name) or f"diffusers.schedulers.{SCHEDULERS[name]}"), name)
    known = inspect.signature(kind.__init__).parameters
    corrected = {**config, "steps_offset": offset, "clip_sample": False}
    scheduler = kind(**{key: value for key, value in corrected.items() if key in known})
    if "levels" in config:

        def levels(in_sigmas: Any, num_inference_steps: int) -> Any:
            return levels_by(config["levels"], scheduler, config["aligned"], in_sigmas, num_inference_steps)

        scheduler._convert_to_exponential = levels
    if "times" in config:
        scheduler.set_timesteps(timesteps=_times(config["times"], scheduler.config.num_train_timesteps, steps))
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def _times(named: str | tuple[int, ...], known: int, steps: int) -> list[int]:
    """Those that are named, or `trailing`: even, from the noisiest on, as diffusers' schedulers that know the word."""
    return [round(known - step * known / steps) - 1 for step in range(steps)] if named == "trailing" else [*named]


def _build_flow(component: Component, steps: int, times: FlowTimes | None) -> Any:
    """As the pipelines of flow models set theirs."""
    name = component.class_name
    home = OURS.get(name) or f"diffusers.schedulers.{FLOW_SCHEDULERS[name]}"
    kind = getattr(importlib.import_module(home), name)
    scheduler = kind(**component.config)
    given = {} if times is None else {"sigmas": [*times.sigmas], "mu": times.mu}
    scheduler.set_timesteps(steps, **given)
    return scheduler


@contextmanager
def _told(component: Component, steps: int) -> Iterator[None]:
    """Whatever the library trips over inside is told of as one line, and none of its warnings is seen."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except TRIPPED_OVER as error:
        raise SdcliError(
            f"the {component.class_name} in {echo(component.folder)} cannot do {steps} steps with its settings"
            f" ({echo(error, 120)}): correct its {SCHEDULER.config_file}, or try other --steps"
        ) from error


def rehearse(component: Component, steps: int, run: int | None = None, times: FlowTimes | None = None) -> None:
    """Go through all steps with one number that a model finds no noise in: milliseconds, before anything is loaded.

    img2img runs only the last `run` of them. Raises SdcliError where an exception, NaN or infinity comes of it.
    """
    with _told(component, steps):
        scheduler, generator = build_scheduler(component, steps, times), torch.Generator("cpu").manual_seed(0)
        states, timesteps = from_noise(scheduler, torch.ones(1, 1, 1, 1)), scheduler.timesteps
        if run == 0:
            return
        if run is not None:
            timesteps = begin_at(scheduler, steps - run)
            states = from_picture(scheduler, torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), timesteps)
        options = step_options(scheduler, generator)
        for timestep in timesteps:
            nothing = torch.zeros_like(model_input(scheduler, states, timestep))
            states = scheduler.step(nothing, timestep, states, **options).prev_sample
            if not torch.isfinite(states).all():
                raise ValueError(f"NaN or infinity at timestep {float(timestep):g}")


def from_noise(scheduler: Any, noise: torch.Tensor) -> torch.Tensor:
    """Latents to begin with: standard normal noise, as large as the scheduler wants it."""
    scaled: torch.Tensor = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    return scaled


def from_picture(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """Latents of a picture with noise as of the first of the `timesteps`: of a flow, between the two."""
    if hasattr(scheduler, "scale_noise"):
        noisy: torch.Tensor = scheduler.scale_noise(latents, timesteps[:1], noise)
    else:
        noisy = scheduler.add_noise(latents, noise, timesteps[:1])
    return noisy


def model_input(scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The latents as the model is to see them: a flow's as they are."""
    scale = getattr(scheduler, "scale_model_input", None)
    scaled: torch.Tensor = latents if scale is None else scale(latents, timestep)
    return scaled


def begin_at(scheduler: Any, skipped: int) -> torch.Tensor:
    """The timesteps that are left when so many steps are left out, which the scheduler is told of."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped * scheduler.order)
    timesteps: torch.Tensor = scheduler.timesteps[skipped * scheduler.order :]
    return timesteps


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """What a step takes besides the model's output: the generator of fresh noise, where it asks for one.

    Its eta, how much of each step is fresh noise, stays its own: 0 of DDIM, and of TCD the 0.3 that its authors advise
    (Zheng et al. 2024, https://arxiv.org/abs/2402.19159, where it is gamma); diffusers' pipelines have 0 for both.
    """
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}


def scheduler_state(scheduler: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What a step changes in a scheduler: its tensors by name, and a plain table that says how they belong.

    Schedulers keep a short history of model outputs, as attributes; there is no common way to ask for it.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {}
    for name, value in vars(scheduler).items():
        if name == "_internal_dict":
            continue
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, list) and all(isinstance(item, torch.Tensor | None) for item in value):
            tensors |= {f"{name}.{i}": item for i, item in enumerate(value) if item is not None}
            plain[name] = {"length": len(value)}
        elif isinstance(value, Scalar):
            plain[name] = value
    return tensors, plain


def restore_scheduler(scheduler: Any, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Undo `scheduler_state`, on a scheduler with the same config and number of steps. Raises LookupError for a name
    of the class's own, which no step changes."""
    for name in (*plain, *tensors):
        if name.startswith("__") or name == "_internal_dict" or hasattr(type(scheduler), name):
            raise LookupError(f"{echo(name)} is no state of a scheduler")
    for name, value in plain.items():
        is_list = isinstance(value, dict)
        setattr(scheduler, name, [tensors.get(f"{name}.{i}") for i in range(value["length"])] if is_list else value)
    for name, tensor in tensors.items():
        if "." not in name:
            setattr(scheduler, name, tensor)
