"""Samplers and schedules are known by the names that people use; what a model cannot take is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdcli.domain import Component
from sdcli.errors import BadRequest
from sdcli.models.samplers import SAMPLERS, SCHEDULES, no_effect, sampled, sampler_named, schedule_named

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}


def component(name: str = "PNDMScheduler", **settings: Any) -> Component:
    return Component("scheduler", name, {**BETAS, **settings}, Path("/models/m/scheduler"))


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("DPM++ 2M Karras", "DPM++ 2M", "karras"),
        ("dpm++ 2m  karras", "DPM++ 2M", "karras"),
        ("dpmpp_2m", "DPM++ 2M", None),
        ("dpmpp_2m_karras", "DPM++ 2M", "karras"),
        ("DPM++ SDE Karras", "DPM++ SDE", "karras"),
        ("DPM++ 2M SDE Exponential", "DPM++ 2M SDE", "exponential"),
        ("dpmpp_sde_gpu", "DPM++ SDE", None),
        ("Euler a", "Euler a", None),
        ("euler_ancestral", "Euler a", None),
        ("EULER-A", "Euler a", None),
        ("k_euler_a", "Euler a", None),
        ("dpm++2m", "DPM++ 2M", None),
        ("dpm++2mv2", "DPM++ 2M v2", None),
        ("dpm++2s_a", "DPM++ 2S a", None),
        ("DPM2 a Karras", "DPM2 a", "karras"),
        ("ddim_trailing", "DDIM", "trailing"),
        ("LMS Karras", "LMS", "karras"),
        ("uni_pc", "UniPC", None),
        ("ipndm", "iPNDM", None),
        ("plms", "PLMS", None),
    ],
)
def test_names_of_others_are_known(name: str, sampler: str, schedule: str | None) -> None:
    assert sampler_named(name) == (sampler, schedule)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("Automatic", "model"),
        ("normal", "model"),
        ("sgm_uniform", "trailing"),
        ("Uniform", "model"),
        ("SGM Uniform", "trailing"),
        ("Align Your Steps", "ays"),
        ("KARRAS", "karras"),
    ],
)
def test_schedules_of_others_are_known(name: str, schedule: str) -> None:
    assert schedule_named(name) == schedule


def test_no_name_means_two_things() -> None:
    for things in (SAMPLERS, SCHEDULES):
        names = [name.casefold() for thing in things for name in {thing.name, *thing.aliases}]
        assert len({name.replace(" ", "").replace("_", "") for name in names}) >= len({t.name for t in things})
        for thing in things:
            find = sampler_named if things is SAMPLERS else schedule_named
            for name in (thing.name, *thing.aliases):
                found = find(name)
                assert (found[0] if isinstance(found, tuple) else found) == thing.name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("dpm++ 2k", "DPM++ 2M"),
        ("eulr", "Euler"),
        ("heunn", "Heun"),
        ("unipcc", "UniPC"),
        ("x" * 999, None),
        ("", None),
    ],
)
def test_an_unknown_name_is_told_the_nearest(name: str, nearest: str | None) -> None:
    with pytest.raises(BadRequest, match="no sampler") as caught:
        sampler_named(name)
    assert (f"the nearest is {nearest};" in str(caught.value)) == (nearest is not None)
    with pytest.raises(BadRequest, match="the nearest is karras"):
        schedule_named("karas")


def test_betas_and_what_is_predicted_stay_the_models_and_all_else_is_the_samplers() -> None:
    own = component(
        "DPMSolverMultistepScheduler", solver_order=3, algorithm_type="sde-dpmsolver", use_karras_sigmas=True
    )
    found = sampled(own, "DPM++ 2M", "exponential")
    assert BETAS.items() <= found.config.items()
    assert found.class_name == own.class_name and found.config["solver_order"] == 2
    assert found.config["algorithm_type"] == "dpmsolver++"
    assert (found.config["use_karras_sigmas"], found.config["use_exponential_sigmas"]) == (False, True)
    assert sampled(own, None, None) is own and sampled(own, None, "model") is own
    assert sampled(own, "DPM++ 2M", None).config["use_karras_sigmas"] is True


def test_a_schedule_alone_goes_with_the_models_own_sampler() -> None:
    found = sampled(component("DPMSolverMultistepScheduler", solver_order=3), None, "karras")
    assert found.config["solver_order"] == 3 and found.config["use_karras_sigmas"]
    assert sampled(component("EulerAncestralDiscreteScheduler"), None, "karras").class_name == "EulerAncestral"
    assert sampled(component("EulerAncestralDiscreteScheduler"), None, "trailing").class_name != "EulerAncestral"


@pytest.mark.parametrize(
    ("own", "sampler", "schedule", "why"),
    [
        ("PNDMScheduler", None, "karras", "PLMS goes by its own"),
        ("PNDMScheduler", "LCM", "karras", "LCM goes by its own"),
        ("SASolverScheduler", None, "karras", "give a --sampler as well"),
        ("EDMEulerScheduler", None, "karras", "of its own kind"),
        ("FlowMatchEulerDiscreteScheduler", "Euler", "karras", "of its own kind"),
        ("PNDMScheduler", "Euler", "karras", None),
        ("PNDMScheduler", "LCM", None, None),
        ("PNDMScheduler", "LCM", "trailing", None),
        ("PNDMScheduler", "TCD", "999,499", None),
        ("PNDMScheduler", "DDIM", "999,499", "DDIM goes by its own"),
        ("PNDMScheduler", None, "model", None),
    ],
)
def test_a_schedule_without_effect_is_told(
    own: str, sampler: str | None, schedule: str | None, why: str | None
) -> None:
    reason = no_effect(component(own), sampler, schedule)
    assert reason is None if why is None else reason is not None and why in reason


def test_models_of_other_noise_levels_take_few_samplers() -> None:
    assert sampled(component("EDMEulerScheduler"), "DPM++ 2M", None).class_name == "EDMDPMSolverMultistepScheduler"
    with pytest.raises(
        BadRequest, match="--sampler LMS cannot go by the noise levels of this model, of the kind FlowMatch"
    ):
        sampled(component("FlowMatchEulerDiscreteScheduler"), "LMS", None)
    with pytest.raises(BadRequest, match="--schedule ays: no such levels are known"):
        sampled(component(), "Euler", "ays")
