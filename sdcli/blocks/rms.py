"""Root mean square norm (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467): x / sqrt(mean(x²) + ε) ∘ w."""

from __future__ import annotations

import torch


def rms_norm(states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Over the last dimension. Numbers are scaled in FP32 and weighted in their own type, as models were trained."""
    exact = states.float()
    scales = exact.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (exact * scales).to(states.dtype).mul_(weight)
