"""The stages of all rounds of steps: a family knows those of one, and --hires adds a second one at a larger size."""

from __future__ import annotations

from dataclasses import replace

from sdcli.domain import Model, Request
from sdcli.families.contract import Stage, Times
from sdcli.families.registry import family_of

AGAIN = "hires_"
"""What the names of stages of the second round begin with."""


def stages_of(model: Model, request: Request) -> tuple[Stage, ...]:
    """The stages that a request takes, in order. Words are encoded once, and pictures decoded at the end."""
    stages = family_of(model).stages(model, request)
    if request.hires is None:
        return stages
    (steps,) = (stage for stage in stages if stage.times == "steps")
    (pictures,) = (stage for stage in stages if stage.times == "pictures")
    between = [_again(steps, 1)]
    if request.hires.upscaler == "lanczos":
        between = [_again(pictures, 0, "to_pixels"), _again(_init_stage(model, request), 1, "to_latents"), *between]
    first = [stage for stage in stages if stage is not pictures]
    return (*first, *between, replace(pictures, round=1))


def may_be_enlarged(model: Model, request: Request) -> bool:
    """Whether the model can go on from any picture: one that is told of surroundings would have to be told again."""
    return _init_name(model, request) is not None


def _init_stage(model: Model, request: Request) -> Stage:
    larger, name = request.rounds[-1], _init_name(model, request)
    return next(stage for stage in family_of(model).stages(model, larger) if stage.name == name)


def _init_name(model: Model, request: Request) -> str | None:
    """Of the stage that an init image is there for, and nothing else."""
    family, plain = family_of(model), replace(request, strength=None, masked=False)
    others = {stage.name for stage in family.stages(model, plain)}
    with_init = family.stages(model, replace(plain, strength=1.0))
    return next((stage.name for stage in with_init if stage.name not in others), None)


def _again(stage: Stage, number: int, times: Times | None = None) -> Stage:
    name = f"{AGAIN}{stage.name}"
    return replace(stage, name=name, network_name=stage.function, round=number, times=times or stage.times, kept=False)
