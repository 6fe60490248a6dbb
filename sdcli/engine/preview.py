"""About what a picture will be, small: the picture that the model sees in the noise, by a linear map to colours."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from sdcli.families.colours import Colours
from sdcli.messages import Preview

SIDE_MOST = 128
"""Pixels along a side of it: a latent is one."""


def preview(image: int, colours: Colours, seen: torch.Tensor) -> Preview | None:
    """Of latents (1, channels, h, w) without noise; None of such that are no numbers."""
    if colours.patch > 1:
        seen = F.pixel_shuffle(seen, colours.patch)
    apart = math.ceil(max(seen.shape[-2:]) / SIDE_MOST)
    if apart > 1:
        seen = F.avg_pool2d(seen, apart)
    rows, constant = torch.tensor(colours.channels), torch.tensor(colours.constant)
    levels = (seen[0].movedim(0, -1) @ rows + constant).add_(1).mul_(127.5)
    if not torch.isfinite(levels).all():
        return None
    pixels = levels.clamp_(0, 255).round_().to(torch.uint8).contiguous()
    height, width, _ = pixels.shape
    return Preview(image, width, height, pixels.numpy().tobytes())


def seen_in(scheduler: Any, stepped: Any, latents: torch.Tensor, output: torch.Tensor, timestep: Any) -> torch.Tensor:
    """What the model sees in the latents of a step, for which it gave `output`: about the picture without noise.

    Most schedulers say so when they have `stepped`. Flows go straight from it to noise; those of Karras et
    al. (2022, https://arxiv.org/abs/2206.00364, equation 7) mix both; the others keep the variance (Song et al. 2021,
    https://arxiv.org/abs/2010.02502, equation 12).
    """
    told = getattr(stepped, "pred_original_sample", None)
    if told is not None:
        seen: torch.Tensor = told
        return seen
    if hasattr(scheduler, "scale_noise"):
        return latents - float(timestep) / scheduler.config.num_train_timesteps * output
    if hasattr(scheduler, "precondition_outputs"):  # whose timesteps are logarithms of noise levels
        sigma = torch.exp(4 * torch.as_tensor(timestep, dtype=torch.float32))
        preconditioned: torch.Tensor = scheduler.precondition_outputs(latents, output, sigma)
        return preconditioned
    known = scheduler.alphas_cumprod
    share = float(known[min(max(round(float(timestep)), 0), len(known) - 1)])
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return share**0.5 * latents - (1 - share) ** 0.5 * output
    return (latents - (1 - share) ** 0.5 * output) / max(share, 1e-6) ** 0.5
