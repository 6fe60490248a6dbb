"""Rotary positions (Su et al. 2021, https://arxiv.org/abs/2104.09864): pairs of numbers turned by an angle a place."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def rotations(positions: torch.Tensor, sizes: Sequence[int], theta: float) -> torch.Tensor:
    """Unit complex numbers, (tokens, sum of sizes / 2), for (tokens, axes) of positions.

    Each axis has `sizes` numbers of a head. The angles are computed in FP64, as models were trained.
    """
    each = []
    for axis, size in enumerate(sizes):
        steps = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device) / size
        angles = torch.outer(positions[:, axis].double(), 1.0 / theta**steps)
        each.append(torch.view_as_complex(torch.stack([angles.cos(), angles.sin()], dim=-1).float()))
    return torch.cat(each, dim=1)


def rotate(heads: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """(tokens, heads, size), each pair of numbers turned, in FP32, in its place: by (tokens, size / 2)."""
    exact = heads.float()
    torch.view_as_complex(exact.unflatten(-1, (-1, 2))).mul_(turns[:, None])
    return exact if exact is heads else heads.copy_(exact)
