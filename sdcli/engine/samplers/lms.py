"""The linear multistep scheduler (k-diffusion's LMS) without scipy, which diffusers' own imports for one integral."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sdcli.engine.samplers.base import NOISE_ALONE, KSampler, from_noise_alone

ORDER = 4
"""Derivatives that a step looks back at, its own among them."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(2)
"""Gauss and Legendre's: exact for polynomials of degree ORDER - 1."""


class LMSDiscreteScheduler(KSampler):
    """diffusers' class of this name: the step is Adams and Bashforth's."""

    def advance(self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: Any) -> torch.Tensor:
        """By the polynomial through the last slopes, but for that of noise alone."""
        level = self.sigmas[index]
        slope = (sample - seen) / level
        if from_noise_alone(level):
            return sample + (self.sigmas[index + 1] - level) * slope
        self.slopes = [*self.slopes, slope][-ORDER:]
        # begun within the schedule there are fewer slopes than coefficients, of which diffusers takes the first
        left_out = int((self.sigmas[:index] > NOISE_ALONE).sum())
        order = min(index + 1 - left_out, ORDER)
        newest_first = enumerate(reversed(self.slopes))
        return sample + sum(self._coefficient(order, index, back) * slope for back, slope in newest_first)

    def _coefficient(self, order: int, index: int, back: int) -> float:
        """The integral over the step of the polynomial that is 1 at the level so many back, 0 at the others."""
        levels = self.sigmas[index - order + 1 : index + 2].double().numpy()[::-1]
        end, begin, *_ = levels
        at = (end + begin) / 2 + NODES * (end - begin) / 2
        others = [level for i, level in enumerate(levels[1:]) if i != back]
        value = np.prod([(at - level) / (levels[1 + back] - level) for level in others], axis=0)
        return float(np.sum(WEIGHTS * value) * (end - begin) / 2)
