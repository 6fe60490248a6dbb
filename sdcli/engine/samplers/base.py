"""What samplers of ours have in common: diffusers' noise levels and interface, k-diffusion's way to write a step.

https://github.com/crowsonkb/k-diffusion, sampling.py (Karras et al. 2022, https://arxiv.org/abs/2206.00364). What a
step leaves for the next one are plain attributes, so that a checkpoint has all of it (engine/schedulers.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

NOISE_ALONE = 1000.0
"""Above it a level shows nothing: diffusers has 4096 for the noise alone of models with zero terminal SNR."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """What diffusers' schedulers return of a step; the second is the picture that the model sees, where it is told."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None


class Stepping(ABC):
    """A scheduler of diffusers whose step is `advance`."""

    sigmas: torch.Tensor
    timesteps: torch.Tensor
    step_index: int | None
    _step_index: int
    _init_step_index: Callable[[torch.Tensor], None]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
    ) -> Stepped:
        """The sample at the next noise level."""
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self._step_index
        seen = self.seen_at(index, sample, model_output)
        previous = self.advance(index, sample, model_output if seen is None else seen, generator)
        self._step_index += 1
        return Stepped(previous, seen)

    def seen_at(self, index: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor | None:
        """The picture that the model sees in the sample, if a step goes by it and not by the model's output."""
        return None

    @abstractmethod
    def advance(
        self, index: int, sample: torch.Tensor, told: torch.Tensor, generator: torch.Generator | None
    ) -> torch.Tensor:
        """From the sample at the level of this number to the next level, by the picture seen or the model's output."""


class LooksBack(Stepping):
    """A step goes by a picture of the step before as well: `seen_before`, None where there was none."""

    seen_before: torch.Tensor | None

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with nothing to look back at."""
        super().set_timesteps(*args, **options)  # type: ignore[misc]  # of the scheduler that comes after
        self.seen_before = None


class KSampler(Stepping, EulerDiscreteScheduler):  # type: ignore[misc]  # diffusers is not followed by mypy
    """The noise levels are EulerDiscreteScheduler's; a step goes by the picture that the model sees.

    `slopes` are the last ones, newest last.
    """

    slopes: list[torch.Tensor]

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        """As for Euler, with nothing to look back at."""
        super().set_timesteps(*args, **options)
        self.slopes = []

    def seen_at(self, index: int, sample: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """The picture, by what the model predicts."""
        sigma = self.sigmas[index]
        if self.config.prediction_type == "epsilon":
            return sample - sigma * output
        if self.config.prediction_type == "v_prediction":
            return output * (-sigma / (sigma**2 + 1) ** 0.5) + (sample / (sigma**2 + 1))
        return output


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
