"""What schedulers of a model's folder may be set to, as far as it can be said without building one (no torch).

A folder's config often has settings of the scheduler that it had before: a class gets those that it takes, and what the
others are makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError, echo

SCHEDULERS = {
    "DDIMParallelScheduler": "scheduling_ddim_parallel",
    "DDIMScheduler": "scheduling_ddim",
    "DDPMParallelScheduler": "scheduling_ddpm_parallel",
    "DDPMScheduler": "scheduling_ddpm",
    "DEISMultistepScheduler": "scheduling_deis_multistep",
    "DPMSolverMultistepScheduler": "scheduling_dpmsolver_multistep",
    "DPMSolverSinglestepScheduler": "scheduling_dpmsolver_singlestep",
    "EDMDPMSolverMultistepScheduler": "scheduling_edm_dpmsolver_multistep",
    "EDMEulerScheduler": "scheduling_edm_euler",
    "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
    "EulerDiscreteScheduler": "scheduling_euler_discrete",
    "HeunDiscreteScheduler": "scheduling_heun_discrete",
    "IPNDMScheduler": "scheduling_ipndm",
    "KDPM2AncestralDiscreteScheduler": "scheduling_k_dpm_2_ancestral_discrete",
    "KDPM2DiscreteScheduler": "scheduling_k_dpm_2_discrete",
    "LCMScheduler": "scheduling_lcm",
    "LMSDiscreteScheduler": "scheduling_lms_discrete",
    "PNDMScheduler": "scheduling_pndm",
    "SASolverScheduler": "scheduling_sasolver",
    "TCDScheduler": "scheduling_tcd",
    "UniPCMultistepScheduler": "scheduling_unipc_multistep",
}
"""The schedulers a model may name, and the module of diffusers.schedulers each lives in."""

FLOW_SCHEDULERS = {"FlowMatchEulerDiscreteScheduler": "scheduling_flow_match_euler_discrete"}
"""The same for flow models, whose samplers take the same settings."""

_BETAS = "num_train_timesteps beta_start beta_end beta_schedule trained_betas "
_SPACED = _BETAS + "prediction_type timestep_spacing steps_offset "
_LIMITED = "thresholding dynamic_thresholding_ratio sample_max_value "
_CLIPPED = _SPACED + _LIMITED + "clip_sample clip_sample_range rescale_betas_zero_snr "
_SIGMAS = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
_SOLVER = "solver_order algorithm_type solver_type lower_order_final "
_CONSISTENT = _CLIPPED + "original_inference_steps set_alpha_to_one timestep_scaling "
_EDM = "num_train_timesteps prediction_type sigma_min sigma_max sigma_data sigma_schedule rho final_sigmas_type "

SETTINGS = {
    name: frozenset(keys.split())
    for name, keys in {
        "DDIMParallelScheduler": _CLIPPED + "set_alpha_to_one",
        "DDIMScheduler": _CLIPPED + "set_alpha_to_one",
        "DDPMParallelScheduler": _CLIPPED + "variance_type",
        "DDPMScheduler": _CLIPPED + "variance_type",
        "DEISMultistepScheduler": _SPACED + _LIMITED + _SIGMAS + _SOLVER,
        "DPMSolverMultistepScheduler": _SPACED + _LIMITED + _SIGMAS + _SOLVER
        + "euler_at_final use_lu_lambdas final_sigmas_type lambda_min_clipped variance_type rescale_betas_zero_snr",
        "DPMSolverSinglestepScheduler": _BETAS + _LIMITED + _SIGMAS + _SOLVER
        + "prediction_type final_sigmas_type lambda_min_clipped variance_type",
        "EDMDPMSolverMultistepScheduler": _EDM + _LIMITED + _SOLVER + "euler_at_final",
        "EDMEulerScheduler": _EDM,
        "EulerAncestralDiscreteScheduler": _SPACED + "rescale_betas_zero_snr",
        "EulerDiscreteScheduler": _SPACED + _SIGMAS
        + "interpolation_type sigma_min sigma_max timestep_type rescale_betas_zero_snr final_sigmas_type",
        "HeunDiscreteScheduler": _SPACED + _SIGMAS + "clip_sample clip_sample_range",
        "IPNDMScheduler": "num_train_timesteps trained_betas",
        "KDPM2AncestralDiscreteScheduler": _SPACED + _SIGMAS,
        "KDPM2DiscreteScheduler": _SPACED + _SIGMAS,
        "LCMScheduler": _CONSISTENT,
        "LMSDiscreteScheduler": _SPACED + _SIGMAS,
        "PNDMScheduler": _SPACED + "skip_prk_steps set_alpha_to_one",
        "SASolverScheduler": _SPACED + _LIMITED + _SIGMAS
        + "predictor_order corrector_order tau_func algorithm_type lower_order_final lambda_min_clipped variance_type",
        "TCDScheduler": _CONSISTENT,
        "UniPCMultistepScheduler": _SPACED + _LIMITED + _SIGMAS + "solver_order solver_type"
        " lower_order_final predict_x0 disable_corrector solver_p final_sigmas_type rescale_betas_zero_snr sigma_min"
        " sigma_max",
    }.items()
}  # fmt: skip
"""The settings that each scheduler's class takes (diffusers 0.42), besides those of flow models."""

FLOW_SETTINGS = {
    "FlowMatchEulerDiscreteScheduler": frozenset(
        [
            "num_train_timesteps",
            "shift",
            "use_dynamic_shifting",
            "base_shift",
            "max_shift",
            "base_image_seq_len",
            "max_image_seq_len",
            "invert_sigmas",
            "shift_terminal",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "time_shift_type",
            "stochastic_sampling",
        ]
    )
}
"""The settings of flow models' schedulers."""

UNSET: dict[str, object] = {
    "use_flow_sigmas": None,
    "flow_shift": 1.0,
    "use_dynamic_shifting": None,
    "time_shift_type": "exponential",
    "shift_terminal": None,
}
"""Settings of flow models, which are not honoured: what they are while they are unset, or anything false."""

_WORDS = {
    key: frozenset(words.split())
    for key, words in {
        "beta_schedule": "linear scaled_linear squaredcos_cap_v2 sigmoid laplace exp",
        "prediction_type": "epsilon sample v_prediction",
        "timestep_spacing": "linspace leading trailing",
        "variance_type": "fixed_small fixed_small_log fixed_large fixed_large_log learned learned_range",
        "algorithm_type": "deis dpmsolver dpmsolver++ sde-dpmsolver sde-dpmsolver++ data_prediction noise_prediction",
        "solver_type": "midpoint heun logrho bh1 bh2",
        "final_sigmas_type": "zero sigma_min",
        "interpolation_type": "linear log_linear",
        "timestep_type": "discrete continuous",
        "sigma_schedule": "karras exponential",
        "time_shift_type": "exponential linear",
    }.items()
}
"""Words that a setting may be, in one class or another."""

_FLAGS = frozenset(
    [
        "clip_sample",
        "set_alpha_to_one",
        "thresholding",
        "rescale_betas_zero_snr",
        "skip_prk_steps",
        "lower_order_final",
        "euler_at_final",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "predict_x0",
        "use_dynamic_shifting",
        "invert_sigmas",
        "stochastic_sampling",
    ]
)
_COUNTS = {
    "num_train_timesteps": 10**6,
    "original_inference_steps": 10**6,
    "solver_order": 64,
    "predictor_order": 4,
    "corrector_order": 4,
    "base_image_seq_len": 10**6,
    "max_image_seq_len": 10**6,
}
"""Settings that count something, and how much at most."""

_NO_NUMBERS = frozenset([*_WORDS, "trained_betas", "disable_corrector", "solver_p", "tau_func"])
"""Words; and what is null or, the next two, lists: a scheduler or a function cannot be written in JSON."""

_BETAS_LIMIT, _NUMBER_LIMIT = 1000, 10**6
"""Entries of a list of betas, one a training timestep; and the largest number that anything is set to."""

_SHIFT_LIMIT = 100
"""Of all flow models that are known 1 to 12."""

RUNGE_KUTTA_STEPS = 4
"""The steps that PNDM goes by Runge and Kutta before its own (Liu et al. 2022, https://arxiv.org/abs/2202.09778)."""


def checked_scheduler(table: dict[str, Any], path: Path, shown: Callable[[object], str]) -> dict[str, Any]:
    """The settings that some scheduler takes. What the config's own class does not take may be anything.

    Raises SdcliError for what no scheduler has, naming the value as `shown`, and for what is asked for and not done.
    """
    flows = FLOW_SETTINGS.get(str(table.get("_class_name")))
    every = flows or frozenset().union(*SETTINGS.values())
    taken = flows or SETTINGS.get(str(table.get("_class_name")), every)
    kept = {}
    for key, value in table.items():
        if not flows and key in UNSET and value and value != UNSET[key]:
            raise SdcliError(
                f"{echo(path)} sets {echo(key)} to {shown(value)}: that is another family of model, not supported yet"
            )
        if key in taken and not may_be(key, value):
            raise SdcliError(
                f"{echo(path)} sets {echo(key)} to what no known scheduler has ({shown(value)}): refused; correct it"
            )
        if key in every and may_be(key, value):
            kept[key] = value
    if table.get("predict_epsilon") is False:  # what it was called before diffusers 0.10
        kept["prediction_type"] = "sample"
    if "use_beta_sigmas" in taken and lacks_scipy(kept):
        raise SdcliError(f"{echo(path)} sets 'use_beta_sigmas', which needs scipy: install it, or set it to false")
    return kept


def may_be(key: str, value: object) -> bool:  # noqa: PLR0911
    """Whether a scheduler may have such a setting."""
    if isinstance(value, list):
        what = {"trained_betas": _is_beta, "disable_corrector": _is_count}.get(key)
        return what is not None and len(value) <= _BETAS_LIMIT and all(map(what, value))
    if isinstance(value, str):
        return value in _WORDS.get(key, ())
    if key in ("beta_start", "beta_end"):
        return _is_beta(value)
    if key in _COUNTS:
        return _is_count(value) and value in range(1, _COUNTS[key] + 1)
    if value is None:
        return key not in _WORDS or key == "variance_type"
    if key in _FLAGS or isinstance(value, bool):
        return key in _FLAGS and isinstance(value, bool)
    if key in _NO_NUMBERS or not isinstance(value, int | float):
        return False
    if key in ("shift", "shift_terminal"):
        return 0 < value <= (_SHIFT_LIMIT if key == "shift" else 1)
    return abs(value) <= _NUMBER_LIMIT or (key == "lambda_min_clipped" and value < 0)  # minus infinity is its default


def _is_beta(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_count(value: object) -> bool:
    return type(value) is int


def lacks_scipy(config: dict[str, Any]) -> bool:
    """Whether the settings ask for what diffusers takes from scipy, and scipy is not there."""
    return bool(config.get("use_beta_sigmas")) and find_spec("scipy") is None


def possible_steps(class_name: str, config: dict[str, Any]) -> range:
    """The numbers of steps that a scheduler can go: no more than it was trained with, or distilled to."""
    most: int = config.get("num_train_timesteps", 1000)
    if class_name in ("LCMScheduler", "TCDScheduler"):
        most = min(most, config.get("original_inference_steps", 50))
    begins_slowly = class_name == "PNDMScheduler" and not config.get("skip_prk_steps")
    return range(RUNGE_KUTTA_STEPS if begins_slowly else 1, most + 1)


def adds_noise(class_name: str) -> bool:
    """Whether the class can begin from a picture, as img2img does."""
    return class_name != "IPNDMScheduler"
