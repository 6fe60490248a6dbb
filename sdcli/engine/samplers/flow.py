"""Samplers of flow models beside Euler's: noise levels, shifts and noise are FlowMatchEulerDiscreteScheduler's.

At the level s a sample is (1 - s) picture + s noise, and the model tells noise - picture (Lipman et al. 2022,
https://arxiv.org/abs/2210.02747). What a step leaves for the next one are plain attributes, so that a checkpoint has
all of it (engine/schedulers.py).
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from sdcli.engine.samplers.base import LooksBack, Stepping, noise_like


class FlowSampler(Stepping, FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is not followed by mypy
    """A step goes by what the model tells: the slope."""


class FlowMatchHeun(FlowSampler):
    """Heun's method (Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1): a step asks the model where it
    begins and where it would end, and goes by the mean of both; the last one only where it begins.

    `sigmas` and `timesteps` have both, one after the other. `begun` is the sample that a step began with, and `slope`
    what the model told of it.
    """

    order = 2
    begun: torch.Tensor | None
    slope: torch.Tensor | None

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with each level but the first and the end there twice."""
        super().set_timesteps(*args, **options)
        first, rest = self.timesteps[:1], self.timesteps[1:]
        self.timesteps = torch.cat([first, rest.repeat_interleave(2)])
        first, rest, end = self.sigmas[:1], self.sigmas[1:-1], self.sigmas[-1:]
        self.sigmas = torch.cat([first, rest.repeat_interleave(2), end])
        self.begun = self.slope = None

    def advance(self, index: int, sample: torch.Tensor, slope: torch.Tensor, generator: Any) -> torch.Tensor:
        """First call, second call, or the last one, which is Euler's step."""
        if self.begun is not None and self.slope is not None:
            mean, begun = (self.slope + slope) / 2, self.begun
            self.begun = self.slope = None
            return begun + (self.sigmas[index] - self.sigmas[index - 1]) * mean
        if self.sigmas[index + 1] > 0:
            self.begun, self.slope = sample, slope
        return sample + (self.sigmas[index + 1] - self.sigmas[index]) * slope


class FlowMatchSolver(LooksBack, FlowSampler):
    """DPM-Solver++ of order 2 with the midpoint (Lu et al. 2022, https://arxiv.org/abs/2211.01095)."""

    def advance(self, index: int, sample: torch.Tensor, slope: torch.Tensor, generator: Any) -> torch.Tensor:
        """In times of log((1 - level) / level); the first step and the last one are of order 1."""
        level, following, before = self.sigmas[index], self.sigmas[index + 1], self.seen_before
        seen = self.seen_before = sample - level * slope
        if before is not None and following > 0:
            last, now, then = (((1 - one) / one).log() for one in self.sigmas[index - 1 : index + 2])
            seen = seen + (then - now) / (2 * (now - last)) * (seen - before)
        ratio = following / level
        return ratio * sample + (1 - ratio) * seen


class FlowMatchAncestral(FlowSampler):
    """Euler's step further down than the next level, and up to it with fresh noise.

    ComfyUI's sample_euler_ancestral_RF with an eta of 1.
    """

    def advance(
        self, index: int, sample: torch.Tensor, slope: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """To what the model sees, at the end."""
        level, following = self.sigmas[index], self.sigmas[index + 1]
        down = following**2 / level
        reached = sample + (down - level) * slope
        if following == 0:
            return reached
        share = (1 - following) / (1 - down)
        return share * reached + (following**2 - (share * down) ** 2).sqrt() * noise_like(sample, generator)
