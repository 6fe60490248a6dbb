"""diffusers' schedulers by name from our own table, and their state as something that can be kept."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch

from sdcli.errors import SdcliError, echo
from sdcli.models.configs import SCHEDULERS
from sdcli.models.folder import Component

Scalar = int | float | bool | str | None


def build_scheduler(component: Component, steps: int) -> Any:
    """The model's own scheduler, from its checked config, set to so many steps.

    As diffusers does, settings of another scheduler are passed over, and the two that old configs have wrong
    for Stable Diffusion are put right (diffusers, StableDiffusionPipeline.__init__). Raises SdcliError for
    settings that the class refuses, and for more steps than it can take.
    """
    module = importlib.import_module(f"diffusers.schedulers.{SCHEDULERS[component.class_name]}")
    kind = getattr(module, component.class_name)
    known = inspect.signature(kind.__init__).parameters
    corrected = {**component.config, "steps_offset": 1, "clip_sample": False}
    try:
        scheduler = kind(**{key: value for key, value in corrected.items() if key in known})
        scheduler.set_timesteps(steps)
        # with as many steps as the model knows, the offset of 1 begins one past the last: diffusers fails there
        scheduler.timesteps = scheduler.timesteps.clamp(max=scheduler.config.num_train_timesteps - 1)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, ImportError) as error:
        raise SdcliError(
            f"the {component.class_name} in {echo(component.folder)} cannot do {steps} steps with its settings"
            f" ({echo(error, 120)}): try fewer --steps"
        ) from error
    return scheduler


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """What a step takes besides the model's output: the generator of fresh noise, and an eta of 0, as in diffusers."""
    offered: dict[str, Any] = {"generator": generator, "eta": 0.0}
    known = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in offered.items() if key in known}


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
    """Undo `scheduler_state`, on a scheduler with the same config and number of steps."""
    for name, value in plain.items():
        is_list = isinstance(value, dict)
        setattr(scheduler, name, [tensors.get(f"{name}.{i}") for i in range(value["length"])] if is_list else value)
    for name, tensor in tensors.items():
        if "." not in name:
            setattr(scheduler, name, tensor)
