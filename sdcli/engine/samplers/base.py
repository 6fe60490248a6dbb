"""What samplers of ours have in common: diffusers' noise levels and interface, k-diffusion's way to write a step.

https://github.com/crowsonkb/k-diffusion, sampling.py (Karras et al. 2022, https://arxiv.org/abs/2206.00364). What a
step leaves for the next one are plain attributes, so that a checkpoint has all of it (engine/schedulers.py).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler, EulerDiscreteSchedulerOutput

NOISE_ALONE = 1000.0
"""Above it a level shows nothing: diffusers has 4096 for the noise alone of models with zero terminal SNR."""


class KSampler(EulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is not followed by mypy
    """The noise levels are EulerDiscreteScheduler's; `advance` is the step. `slopes` are the last ones, newest last."""

    slopes: list[torch.Tensor]
    sigmas: torch.Tensor
    timesteps: torch.Tensor

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with nothing to look back at."""
        super().set_timesteps(*args, **options)
        self.slopes = []

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> Any:
        """The sample at the next noise level."""
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        sigma = self.sigmas[index]
        if self.config.prediction_type == "epsilon":
            seen = sample - sigma * model_output
        elif self.config.prediction_type == "v_prediction":
            seen = model_output * (-sigma / (sigma**2 + 1) ** 0.5) + (sample / (sigma**2 + 1))
        else:
            seen = model_output
        previous = self.advance(index, sample, seen, generator)
        self._step_index += 1
        return EulerDiscreteSchedulerOutput(prev_sample=previous, pred_original_sample=seen)

    @abstractmethod
    def advance(
        self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """From the sample at the level of this number, and the picture that the model sees in it, to the next level."""


class TwoCalls(KSampler):
    """A step that asks the model twice: the second time at a level `between` two, unless nothing is left after it.

    `sigmas` and `timesteps` have both, one after the other. `begun` is the sample that a step began with.
    """

    order = 2
    begun: torch.Tensor | None

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with a level after each one but the last."""
        super().set_timesteps(*args, **options)
        known = (((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5).log().numpy()
        sigmas, timesteps = list[torch.Tensor](), list[torch.Tensor]()
        for level, following, timestep in zip(self.sigmas[:-1], self.sigmas[1:], self.timesteps, strict=True):
            sigmas.append(level)
            timesteps.append(timestep)
            if following > 0:
                sigmas.append(self.between(level, following))
                timesteps.append(torch.tensor(self._sigma_to_t(sigmas[-1].numpy(), known), dtype=torch.float32))
        self.sigmas, self.timesteps = torch.stack([*sigmas, self.sigmas[-1]]), torch.stack(timesteps)
        self.begun = None

    @abstractmethod
    def between(self, level: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        """The level of the second call."""

    def advance(
        self, index: int, sample: torch.Tensor, seen: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """First call, second call, or the last one, which is Euler's step."""
        if self.begun is not None:
            level, between, following = self.sigmas[index - 1 : index + 2]
            begun, self.begun = self.begun, None
            return self.second(begun, seen, (level, between, following), generator)
        if index + 2 == len(self.sigmas) and self.sigmas[-1] == 0:
            return seen
        level, between, following = self.sigmas[index : index + 3]
        self.begun = sample
        return self.first(sample, seen, (level, between, following), generator)

    @abstractmethod
    def first(
        self, sample: torch.Tensor, seen: torch.Tensor, levels: tuple[torch.Tensor, ...], generator: Any
    ) -> torch.Tensor:
        """To the level between."""

    @abstractmethod
    def second(
        self, begun: torch.Tensor, seen: torch.Tensor, levels: tuple[torch.Tensor, ...], generator: Any
    ) -> torch.Tensor:
        """From the first sample to the next level, by what was seen between."""


def from_noise_alone(level: torch.Tensor) -> bool:
    """Whether a step begins where nothing shows: what it is told is of no use to steps a thousand times shorter."""
    return bool(level > NOISE_ALONE)


def ancestral(level: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The level to go down to, and that of fresh noise which makes the following one of it."""
    up = (following**2 * (level**2 - following**2) / level**2) ** 0.5
    return (following**2 - up**2) ** 0.5, up


def noise_like(sample: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal noise of a sample's shape, drawn on the CPU."""
    return torch.randn(sample.shape, generator=generator, dtype=sample.dtype).to(sample.device)
