"""Schedules of noise levels that diffusers lacks, or takes from a library that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdcli.engine.samplers.base import NOISE_ALONE

Levels = NDArray[np.float64]

ALPHA = 0.6
"""Both parameters of the beta distribution (Lee et al. 2024, https://arxiv.org/abs/2407.12173)."""

_TERMS, _HALVINGS = 64, 60


RHO = 7.0
"""Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 5."""


def levels_by(name: str, scheduler: Any, aligned: Sequence[float], ends: Sequence[float], steps: int) -> Levels:
    """So many levels from the noisiest down. `ends` are the levels that the scheduler would go by, the noisiest first.

    `aligned` are those of Align Your Steps, with the end that its last step goes to. Of a model that begins with noise
    alone, the first level is that, and the others go on from where equal steps in time would.
    """
    trained = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).numpy()
    if name == "simple":
        return simple(trained, steps)
    most, least = float(ends[0]), float(ends[-1])
    if trained[-1] < NOISE_ALONE:
        return _between(name, aligned, most, least, steps)
    following = float(trained[max(0, round(len(trained) * (1 - 1 / steps)) - 1)])
    return np.concatenate([[trained[-1]], _between(name, aligned, following, least, steps - 1)])


def _between(name: str, aligned: Sequence[float], most: float, least: float, steps: int) -> Levels:
    if steps < 1:
        return np.empty(0)
    if name == "beta":
        return beta(most, least, steps)
    if name == "ays":
        return ays(aligned, steps)
    shares = np.linspace(0, 1, steps)
    if name == "karras":
        return (most ** (1 / RHO) + shares * (least ** (1 / RHO) - most ** (1 / RHO))) ** RHO
    return np.exp(np.log(most) + shares * (np.log(least) - np.log(most)))


def simple(trained: Levels, steps: int) -> Levels:
    """ComfyUI's simple_scheduler: every so many of the levels that the model was trained with, which ascend."""
    apart = len(trained) / steps
    return np.array([trained[-(1 + int(step * apart))] for step in range(steps)], dtype=np.float64)


def ays(aligned: Sequence[float], steps: int) -> Levels:
    """Align Your Steps (Sabour et al. 2024, https://arxiv.org/abs/2404.14507): between its levels even in logarithms.

    https://research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html
    """
    places = np.linspace(0, 1, steps + 1)
    return np.exp(np.interp(places, np.linspace(0, 1, len(aligned)), np.log(aligned)))[:-1]


def beta(most: float, least: float, steps: int) -> Levels:
    """As diffusers' _convert_to_beta, which takes the quantiles from scipy."""
    return least + quantiles(1 - np.linspace(0, 1, steps)) * (most - least)


def quantiles(shares: Levels) -> Levels:
    """Of the beta distribution, both of whose parameters are ALPHA: where the regularised incomplete beta function,

    summed up as its power series below 1/2, is each of the shares.
    """
    lower = np.minimum(shares, 1 - shares)
    whole = 2 * _incomplete(np.array(0.5))
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = _incomplete(middle) < lower * whole
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(shares > 0.5, 1 - (low + high) / 2, (low + high) / 2)


def _incomplete(x: Levels) -> Levels:
    """The incomplete beta function, x^a times the sum of (1-a)_n / n! x^n / (a+n)."""
    total, factor = np.zeros_like(x), np.ones_like(x)
    for n in range(_TERMS):
        total = total + factor / (ALPHA + n)
        factor = factor * (n + 1 - ALPHA) / (n + 1) * x
    result: Levels = x**ALPHA * total
    return result
