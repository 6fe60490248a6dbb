"""Samplers and schedules of noise levels by the names that people use: A1111's, ComfyUI's, stable-diffusion.cpp's.

A sampler is a scheduler's class and settings that replace the model's; betas and what the denoiser predicts stay the
model's. As diffusers' documentation has them for A1111's names (docs/source/en/api/schedulers/overview.md). No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from sdcli.domain import Component, Model, Request
from sdcli.errors import BadRequest, echo
from sdcli.families.registry import family_of
from sdcli.models.schedulers import SETTINGS

TIMES = frozenset({"trailing"})
SIGMAS = frozenset({"karras", "exponential", "beta", "simple", "ays"}) | TIMES


@dataclass(frozen=True, slots=True)
class Sampler:
    """A way to go from noise to a picture."""

    name: str
    """A1111's."""
    scheduler: str
    """The class."""
    aliases: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    schedules: frozenset[str] = SIGMAS
    """That it can go by, besides the model's own."""
    levelled: str | None = None
    """The class that goes by schedules of noise levels, if not the same."""
    calls: int = 1
    """Of the denoiser, a step."""
    timed: bool = False
    """Whether it goes by times that it is told, as in 999,749,499,249."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The noise levels of a sampler's steps."""

    name: str
    aliases: tuple[str, ...]
    about: str
    settings: Mapping[str, object] = field(default_factory=dict)


_MULTISTEP: dict[str, object] = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
_TWO = "DPMSolverMultistepScheduler"

SAMPLERS = (
    Sampler("Euler", "EulerDiscreteScheduler", ("euler", "k_euler")),
    Sampler(
        "Euler a",
        "EulerAncestralDiscreteScheduler",
        ("euler_a", "euler_ancestral", "k_euler_a"),
        levelled="EulerAncestral",
    ),
    Sampler("Heun", "HeunDiscreteScheduler", ("heun", "k_heun"), calls=2),
    Sampler("DPM2", "KDPM2DiscreteScheduler", ("dpm2", "dpm_2", "k_dpm_2"), calls=2),
    Sampler(
        "DPM2 a",
        "KDPM2AncestralDiscreteScheduler",
        ("dpm2_a", "dpm_2_ancestral", "dpm2_ancestral", "k_dpm_2_a"),
        calls=2,
    ),
    Sampler("DPM++ 2M", _TWO, ("dpmpp_2m", "k_dpmpp_2m"), _MULTISTEP | {"algorithm_type": "dpmsolver++"}),
    Sampler("DPM++ 2M v2", "DPMSolverModified", ("dpm++2mv2", "dpmpp_2m_v2")),
    Sampler(
        "DPM++ 2M SDE",
        _TWO,
        ("dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "k_dpmpp_2m_sde"),
        _MULTISTEP | {"algorithm_type": "sde-dpmsolver++"},
    ),
    Sampler("DPM++ 3M SDE", "DPMSolverThird", ("dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "k_dpmpp_3m_sde")),
    Sampler("DPM++ 2S a", "DPMSolverAncestral", ("dpm++2s_a", "dpmpp_2s_ancestral", "k_dpmpp_2s_a"), calls=2),
    Sampler("DPM++ SDE", "DPMSolverSDE", ("dpmpp_sde", "dpmpp_sde_gpu", "k_dpmpp_sde"), calls=2),
    Sampler("DDIM", "DDIMScheduler", ("ddim",), schedules=TIMES),
    Sampler("PLMS", "PNDMScheduler", ("plms", "pndm"), {"skip_prk_steps": True}, TIMES),
    Sampler("LMS", "LMSDiscreteScheduler", ("lms", "k_lms")),
    Sampler("UniPC", "UniPCMultistepScheduler", ("uni_pc", "uni_pc_bh2"), {"solver_order": 2, "solver_type": "bh2"}),
    Sampler("DEIS", "DEISMultistepScheduler", ("deis",), {"solver_order": 2, "algorithm_type": "deis"}),
    Sampler("LCM", "LCMScheduler", ("lcm",), schedules=TIMES, timed=True),
    Sampler("TCD", "TCDScheduler", ("tcd",), schedules=TIMES, timed=True),
    Sampler("iPNDM", "ImprovedPNDM", ("ipndm",)),
    Sampler("iPNDM_v", "VariablePNDM", ("ipndm_v",)),
    Sampler("DDPM", "DDPMScheduler", ("ddpm",), schedules=TIMES),
)
"""All of them."""

_LEVELS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_LEVELS |= {"use_lu_lambdas": False}


def _ours(levels: str) -> dict[str, object]:
    return {**_LEVELS, "use_exponential_sigmas": True, "levels": levels}


SCHEDULES = (
    Schedule("model", ("automatic", "default", "normal", "uniform", "discrete"), "the model's own"),
    Schedule("karras", (), "Karras et al. 2022, rho 7", {**_LEVELS, "use_karras_sigmas": True}),
    Schedule("exponential", (), "even in the logarithm of the level", {**_LEVELS, "use_exponential_sigmas": True}),
    Schedule(
        "trailing",
        ("sgm_uniform",),
        "even in time, from the noisiest level on",
        {**_LEVELS, "timestep_spacing": "trailing"},
    ),
    Schedule("simple", (), "every so many of the levels that the model was trained with", _ours("simple")),
    Schedule("beta", (), "quantiles of a beta distribution (Lee et al. 2024)", _ours("beta")),
    Schedule(
        "ays",
        ("align_your_steps",),
        "found for the family by Align Your Steps (Sabour et al. 2024)",
        _ours("ays"),
    ),
)
"""All of them; the first is that of whoever says nothing."""

_TIMES = re.compile(r"[0-9]{1,4}(,[0-9]{1,4}){0,99}")
_BETWEEN = frozenset({"karras", "exponential"})
"""Schedules that go from the noisiest level to the least. Where that is noise alone, their levels would nearly all be
above any that shows something: then the first is that, and the others are between the next ones (engine/samplers/)."""

OWN = "model"
"""What asks for the model's own sampler, also where another one would be assumed."""

_TOGETHER = {"ddim_trailing": ("DDIM", "trailing")}
"""One name for both."""


def _plain(name: str) -> str:
    """A name without case, spaces, dashes and underscores; plus signs are `p`s, as ComfyUI writes them."""
    return re.sub(r"[\s_-]+", "", name.casefold()).replace("+", "p")


def _by_name(things: Iterable[Sampler] | Iterable[Schedule]) -> dict[str, str]:
    return {_plain(name): thing.name for thing in things for name in (thing.name, *thing.aliases)}


_NAMES, _SCHEDULE_NAMES = _by_name(SAMPLERS), _by_name(SCHEDULES)
_SAMPLERS = {sampler.name: sampler for sampler in SAMPLERS}
_SCHEDULES = {schedule.name: schedule for schedule in SCHEDULES}


def sampler_named(name: str) -> tuple[str, str | None]:
    """The sampler behind a name, and the schedule where the name has both: `DPM++ 2M Karras`, `ddim_trailing`.

    OWN is the model's.
    Raises BadRequest for a name that is none, with the nearest.
    """
    plain = _plain(name)
    if plain == OWN:
        return OWN, None
    together = {_plain(key): both for key, both in _TOGETHER.items()}
    if plain in together:
        return together[plain]
    if plain in _NAMES:
        return _NAMES[plain], None
    for ending, schedule in _SCHEDULE_NAMES.items():
        if plain.endswith(ending) and plain.removesuffix(ending) in _NAMES:
            return _NAMES[plain.removesuffix(ending)], schedule
    raise BadRequest(f"no sampler {echo(name)}: {_nearest(name, [*_NAMES, *together], _shown_names(SAMPLERS))}")


def times_in(schedule: str | None) -> tuple[int, ...]:
    """The times that a schedule names, one a step, as in 999,749,499,249; none of one that has another name."""
    if schedule is None or not _TIMES.fullmatch(schedule):
        return ()
    times = tuple(map(int, schedule.split(",")))
    return times if all(later < earlier for earlier, later in pairwise(times)) else ()


def schedule_named(name: str) -> str:
    """The schedule behind a name, or times. Raises BadRequest for a name that is none, with the nearest."""
    if times_in(name.replace(" ", "")):
        return name.replace(" ", "")
    plain = _plain(name)
    if plain not in _SCHEDULE_NAMES:
        raise BadRequest(f"no schedule {echo(name)}: {_nearest(name, _SCHEDULE_NAMES, _shown_names(SCHEDULES))}")
    return _SCHEDULE_NAMES[plain]


def _shown_names(things: Iterable[Sampler] | Iterable[Schedule]) -> dict[str, str]:
    return {_plain(name): name for thing in things for name in (*thing.aliases, thing.name)}


def _nearest(name: str, known: Iterable[str], shown: Mapping[str, str]) -> str:
    import difflib  # here, because it is seldom needed

    nearest = difflib.get_close_matches(_plain(name)[:64], known, 1, 0.4)
    hint = f"the nearest is {shown.get(nearest[0], nearest[0])}; " if nearest else ""
    return f"{hint}sdcli samplers lists all"


_OTHER_KINDS: dict[str, dict[str, str]] = {
    "EDM": {"Euler": "EDMEulerScheduler", "DPM++ 2M": "EDMDPMSolverMultistepScheduler"},
    "FlowMatch": {
        "Euler": "FlowMatchEulerDiscreteScheduler",
        "Euler a": "FlowMatchAncestral",
        "Heun": "FlowMatchHeun",
        "DPM++ 2M": "FlowMatchSolver",
    },
}
"""Schedulers of models that go by other noise levels than betas give, by what their classes' names begin with, and the
samplers that go by them as well."""


def no_effect(component: Component, sampler: str | None, schedule: str | None) -> str | None:
    """Why the schedule has no effect on a model with this scheduler; None where it has."""
    if schedule is None or schedule == "model":
        return None
    if _kind(component) is not None:
        return "the model has noise levels of its own kind"
    found = _SAMPLERS[sampler] if sampler is not None else _sampler_of(component.class_name)
    if found is None:
        return f"the model's {component.class_name} goes by its own: give a --sampler as well"
    return None if _honours(found, schedule) else f"{found.name} goes by its own"


def _honours(sampler: Sampler, schedule: str | None) -> bool:
    return schedule in sampler.schedules or (sampler.timed and bool(times_in(schedule)))


def scheduler_of(model: Model, request: Request) -> Component:
    """The model's scheduler, or what is asked for in its place."""
    aligned = family_of(model).defaults.aligned_levels
    return sampled(model.parts["scheduler"], request.sampler, request.schedule, aligned)


def sampled(
    component: Component, sampler: str | None, schedule: str | None, aligned: Sequence[float] = ()
) -> Component:
    """The model's scheduler as another sampler or with another schedule; None is what the model has.

    `aligned` are the family's levels of Align Your Steps. Raises BadRequest for what the model cannot take.
    """
    if sampler is None and (schedule is None or schedule == "model"):
        return component
    kind = _kind(component)
    if kind is not None:
        return component if sampler is None else _of_kind(component, kind, sampler)
    found = _SAMPLERS[sampler] if sampler is not None else _sampler_of(component.class_name)
    if found is None:
        return component
    honoured = _honours(found, schedule)
    if honoured and schedule == "ays" and not aligned:
        raise BadRequest("--schedule ays: no such levels are known for this family of models; give another schedule")
    config: dict[str, Any] = {**component.config, **(found.settings if sampler is not None else {})}
    name = found.scheduler if sampler is not None else component.class_name
    if honoured and schedule is not None and found.timed:
        config["times"] = times_in(schedule) or schedule
    elif honoured and schedule is not None:
        name = found.levelled if found.levelled and schedule not in TIMES else name
        between = schedule in _BETWEEN and is_zero_snr(component) and takes_zero_snr(name)
        config |= _ours(schedule) if between else _SCHEDULES[schedule].settings
        if "levels" in config:
            config["aligned"] = tuple(aligned)
    return replace(component, class_name=name, config=config)


def is_zero_snr(component: Component) -> bool:
    """Whether the model's noisiest level is noise alone (Lin et al. 2023, https://arxiv.org/abs/2305.08891)."""
    return takes_zero_snr(component.class_name) and bool(component.config.get("rescale_betas_zero_snr"))


def takes_zero_snr(class_name: str) -> bool:
    """Whether a scheduler begins there: Heun, DPM2 and DEIS begin as other models do, from where something shows.

    From noise alone their first step, of two calls or a polynomial, would be thousands of times too long.
    """
    ours = class_name not in SETTINGS or class_name == "LMSDiscreteScheduler"
    return ours or "rescale_betas_zero_snr" in SETTINGS[class_name]


def _kind(component: Component) -> str | None:
    return next((kind for kind in _OTHER_KINDS if component.class_name.startswith(kind)), None)


def _of_kind(component: Component, kind: str, sampler: str) -> Component:
    classes = _OTHER_KINDS[kind]
    *others, last = classes
    if sampler not in classes:
        raise BadRequest(
            f"--sampler {sampler} cannot go by the noise levels of this model, of the kind {kind}:"
            f" give {', '.join(others)} or {last}, or leave it out"
        )
    return replace(component, class_name=classes[sampler])


def _sampler_of(class_name: str) -> Sampler | None:
    """The sampler that a scheduler's class is, for those that people have a name for."""
    return next((one for one in SAMPLERS if one.scheduler == class_name), None)
