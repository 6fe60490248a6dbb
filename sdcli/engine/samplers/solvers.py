"""Samplers that diffusers lacks, or has with less than people know of them, by their published formulas."""

from __future__ import annotations

from typing import Any

import torch

from sdcli.engine.samplers.base import KSampler, LooksBack, TwoCalls, ancestral, from_noise_alone, noise_like

_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams and Bashforth's weights for steps of one length, the newest slope's first."""


class EulerAncestral(KSampler):
    """k-diffusion's sample_euler_ancestral, for any schedule of noise levels: diffusers' class has its own alone."""

    def advance(self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: Any) -> torch.Tensor:
        """Euler's step to a lower level than the next one, and fresh noise."""
        level = self.sigmas[index]
        down, up = ancestral(level, self.sigmas[index + 1])
        return sample + (sample - seen) / level * (down - level) + noise_like(sample, generator) * up


class ImprovedPNDM(KSampler):
    """iPNDM of order 4 (Zhang and Chen 2022, https://arxiv.org/abs/2204.13902) as ComfyUI's sample_ipndm has it.

    diffusers' class of this name makes its own noise levels, which no Stable Diffusion knows.
    """

    def advance(self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: Any) -> torch.Tensor:
        """Adams and Bashforth's step, as if all steps were of one length; the last one to what is seen."""
        level, following = self.sigmas[index], self.sigmas[index + 1]
        if following == 0:
            return seen
        slope_now = (sample - seen) / level
        if from_noise_alone(level):
            return sample + (following - level) * slope_now
        self.slopes = [*self.slopes, slope_now][-len(_ADAMS) :]
        slope = sum(w * one for w, one in zip(self.weights(index), reversed(self.slopes), strict=True))
        return sample + (following - level) * slope

    def weights(self, index: int) -> tuple[float, ...]:
        """Of the last slopes, the newest first, in the step from the level of this number."""
        return _ADAMS[len(self.slopes) - 1]


class VariablePNDM(ImprovedPNDM):
    """iPNDM_v of order 4: steps of their own lengths, as ComfyUI's sample_ipndm_v has it, from
    https://github.com/zju-pi/diff-sampler. `slopes` are the last ones, newest last."""

    def weights(self, index: int) -> tuple[float, ...]:
        """By the lengths of this step and of those before it."""
        order = len(self.slopes)
        lengths = (self.sigmas[index - order + 2 : index + 2] - self.sigmas[index - order + 1 : index + 1]).tolist()
        return _variable_weights(*reversed(lengths))


def _variable_weights(now: float, *before: float) -> tuple[float, ...]:
    """Those of the last slopes, the newest first, for a step of the length `now` after others."""
    if not before:
        return (1.0,)
    last = before[0]
    first = 1 + now / last / 2, -now / last / 2
    if len(before) == 1:
        return first
    older = before[1]
    ratio = last / older
    second = (1 - now / (3 * (now + last)) * (now * (now + last)) / (last * (last + older))) / 2
    two = first[0] + second, first[1] - (1 + ratio) * second, second * ratio
    if len(before) == 2:
        return two
    oldest = before[2]
    third = (1 - now / (3 * (now + last))) / 2
    third += (1 - now / (2 * (now + last))) * now / (6 * (now + last + older))
    third *= now * (now + last) * (now + last + older) / (last * (last + older) * (last + older + oldest))
    far = last * (last + older) / (older * (older + oldest))
    return (
        two[0] + third,
        two[1] - (1 + ratio + far) * third,
        two[2] + (ratio + far * (1 + older / oldest)) * third,
        -third * far * ratio,
    )


class DPMSolverThird(KSampler):
    """DPM++ 3M SDE: k-diffusion's sample_dpmpp_3m_sde, with an eta of 1.

    `seens` are the last pictures that the model saw, newest last.
    """

    seens: list[torch.Tensor]

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with nothing to look back at."""
        super().set_timesteps(*args, **options)
        self.seens = []

    def advance(self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: Any) -> torch.Tensor:
        """In times of -log(level), of which a step with fresh noise goes twice as many."""
        level, following = self.sigmas[index], self.sigmas[index + 1]
        before, self.seens = self.seens, [*self.seens, seen][-2:]
        if following == 0:
            return seen
        length = (level / following).log()
        twice = 2 * length
        drawn = (-twice).exp() * sample - (-twice).expm1() * seen
        if before:
            second = (-twice).expm1() / twice + 1
            apart = (self.sigmas[index - 1] / level).log() / length
            slope = (seen - before[-1]) / apart
            if len(before) == 1:
                drawn = drawn + second * slope
            else:
                further = (self.sigmas[index - 2] / self.sigmas[index - 1]).log() / length
                bent = (slope - (before[-1] - before[-2]) / further) / (apart + further)
                drawn = drawn + second * (slope + bent * apart) - (second / twice - 0.5) * bent
        return drawn + noise_like(sample, generator) * following * (-(-twice).expm1()).sqrt()


class DPMSolverModified(LooksBack, KSampler):
    """DPM++ 2M v2: the step that AUTOMATIC1111/stable-diffusion-webui's discussion 8457 proposes.

    DPM-Solver++ (Lu et al. 2022, https://arxiv.org/abs/2211.01095) with the lengths of two steps averaged.
    """

    def advance(self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: Any) -> torch.Tensor:
        """In times of -log(level)."""
        level, following, before = self.sigmas[index], self.sigmas[index + 1], self.seen_before
        self.seen_before = seen
        if before is None or following == 0:
            return following / level * sample - (following / level - 1) * seen
        length, last = (level / following).log(), (self.sigmas[index - 1] / level).log()
        ratio = torch.maximum(length, last) / torch.minimum(length, last)
        towards = (1 + 1 / (2 * ratio)) * seen - 1 / (2 * ratio) * before
        return following / level * sample - (-(length + last) / 2).expm1() * towards


class DPMSolverAncestral(TwoCalls):
    """DPM++ 2S a: k-diffusion's sample_dpmpp_2s_ancestral."""

    def between(self, level: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Half of the way in time to the level that the step goes down to."""
        return (level * ancestral(level, following)[0]) ** 0.5

    def first(
        self, sample: torch.Tensor, seen: torch.Tensor, levels: tuple[torch.Tensor, ...], generator: Any
    ) -> torch.Tensor:
        """To the level between, by what is seen now."""
        level, between, _ = levels
        return between / level * sample - (between / level - 1) * seen

    def second(
        self, begun: torch.Tensor, seen: torch.Tensor, levels: tuple[torch.Tensor, ...], generator: Any
    ) -> torch.Tensor:
        """Down, by what was seen between, and up with fresh noise."""
        level, _, following = levels
        down, up = ancestral(level, following)
        return down / level * begun - (down / level - 1) * seen + noise_like(begun, generator) * up


class DPMSolverSDE(TwoCalls):
    """DPM++ SDE: k-diffusion's sample_dpmpp_sde, whose noises are increments of one Brownian motion over the levels.

    `fresh` is the increment of the first half, as standard normal noise.
    """

    fresh: Any

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with nothing begun."""
        super().set_timesteps(*args, **options)
        self.fresh = None

    def between(self, level: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """Half of the way in time."""
        return (level * following) ** 0.5

    def first(
        self, sample: torch.Tensor, seen: torch.Tensor, levels: tuple[torch.Tensor, ...], generator: Any
    ) -> torch.Tensor:
        """An ancestral step to the level between."""
        level, between, _ = levels
        down, up = ancestral(level, between)
        self.fresh = noise_like(sample, generator)
        return down / level * sample - (down / level - 1) * seen + self.fresh * up

    def second(
        self, begun: torch.Tensor, seen: torch.Tensor, levels: tuple[torch.Tensor, ...], generator: Any
    ) -> torch.Tensor:
        """An ancestral step over all of it, by what was seen between; the noise goes on from that of the first half."""
        level, between, following = levels
        down, up = ancestral(level, following)
        halves = (level - between) ** 0.5 * self.fresh + (between - following) ** 0.5 * noise_like(begun, generator)
        self.fresh = None
        return down / level * begun - (down / level - 1) * seen + halves / (level - following) ** 0.5 * up
