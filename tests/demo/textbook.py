"""What the built-in model draws by the formulas of the papers, whatever its scheduler's config says.

The scaled-linear schedule of Stable Diffusion, rescaled to zero terminal SNR, with trailing timesteps (Lin et al. 2023,
https://arxiv.org/abs/2305.08891, algorithm 1 and table 2); v-prediction (Salimans and Ho 2022,
https://arxiv.org/abs/2202.00512); steps without noise (DDIM, Song et al. 2021, https://arxiv.org/abs/2010.02502).
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from sdcli.domain import Request
from training.evaluate import Artist


class Textbook:
    """A scheduler in the form that training.evaluate's Artist calls; the first noise has a deviation of 1."""

    def __init__(self) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        signal = (1 - betas).cumprod(0).sqrt()
        self.signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])

    def set_timesteps(self, steps: int) -> None:
        """999 first, then down in even strides."""
        self.stride = 1000 // steps
        self.timesteps = torch.arange(1000, 0, -1000 / steps).round().long() - 1

    def step(self, velocity: torch.Tensor, timestep: torch.Tensor, noisy: torch.Tensor) -> SimpleNamespace:
        """From v = s ε - n x and z = s x + n ε, where s² + n² = 1, to the picture x and the noise ε, and a step on."""
        before = int(timestep) - self.stride
        signal, noise = self._weights(int(timestep))
        picture, unrest = signal * noisy - noise * velocity, signal * velocity + noise * noisy
        signal, noise = self._weights(before) if before >= 0 else (1.0, 0.0)
        return SimpleNamespace(prev_sample=signal * picture + noise * unrest)

    def _weights(self, timestep: int) -> tuple[float, float]:
        signal = float(self.signal[timestep])
        return signal, (1 - signal**2) ** 0.5


class Painter(Artist):
    """Draws by the textbook, in any size."""

    def __init__(self, model: Path, side: int) -> None:
        super().__init__(model, torch.device("cpu"))
        self.scheduler, self.side = Textbook(), side

    def _noise(self, count: int, seed: int) -> torch.Tensor:
        shape = (count, self.unet.config["in_channels"], self.side // 8, self.side // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_by_the_book(model: Path, request: Request) -> torch.Tensor:
    """A square picture in FP32, (s, s, 3) of 0…255 as integers, without a negative prompt."""
    painter = Painter(model, request.width)
    picture = painter([request.prompt], request.guidance, request.steps, request.seed)[0]
    return (picture * 255).round().int().permute(1, 2, 0)
