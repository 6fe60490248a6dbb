"""The linear multistep scheduler (k-diffusion's LMS) without scipy, which diffusers' own imports for one integral."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, EulerDiscreteSchedulerOutput

ORDER = 4
"""Derivatives that a step looks back at, its own among them."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(2)
"""Gauss and Legendre's: exact for polynomials of degree ORDER - 1."""


class LMSDiscreteScheduler(EulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is not followed by mypy
    """diffusers' class of this name: the noise levels are EulerDiscreteScheduler's, the step is Adams and Bashforth's.

    `derivatives` are the last ones, the newest last.
    """

    derivatives: list[torch.Tensor]

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with nothing to look back at."""
        super().set_timesteps(*args, **options)
        self.derivatives = []

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor) -> Any:
        """The sample at the next noise level."""
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        sigma = self.sigmas[index]
        if self.config.prediction_type == "epsilon":
            original = sample - sigma * model_output
        elif self.config.prediction_type == "v_prediction":
            original = model_output * (-sigma / (sigma**2 + 1) ** 0.5) + (sample / (sigma**2 + 1))
        else:
            original = model_output
        self.derivatives = [*self.derivatives, (sample - original) / sigma][-ORDER:]
        # begun within the schedule there are fewer derivatives than coefficients, of which diffusers takes the first
        order = min(index + 1, ORDER)
        newest_first = enumerate(reversed(self.derivatives))
        previous = sample + sum(self._coefficient(order, index, back) * slope for back, slope in newest_first)
        self._step_index += 1
        return EulerDiscreteSchedulerOutput(prev_sample=previous, pred_original_sample=original)

    def _coefficient(self, order: int, index: int, back: int) -> float:
        """The integral over the step of the polynomial that is 1 at the level so many back, 0 at the others."""
        levels = self.sigmas[index - order + 1 : index + 2].double().numpy()[::-1]
        end, begin, *_ = levels
        at = (end + begin) / 2 + NODES * (end - begin) / 2
        others = [level for i, level in enumerate(levels[1:]) if i != back]
        value = np.prod([(at - level) / (levels[1 + back] - level) for level in others], axis=0)
        return float(np.sum(WEIGHTS * value) * (end - begin) / 2)
