"""Words that weigh more or less: what a text encoder gives for them, changed as A1111 or as ComfyUI does it."""

from __future__ import annotations

import torch

from sdcli.domain import Emphasis


def emphasised(
    states: torch.Tensor, weights: torch.Tensor, how: Emphasis, empty: torch.Tensor | None = None
) -> torch.Tensor:
    """States of prompts in chunks, (prompts, chunks, tokens, channels), with the weights of their tokens.

    `a1111`: times the weight, then all of a chunk scaled to the mean that it had (modules/sd_emphasis.py,
    EmphasisOriginal). `comfy`: so many times as far from what the `empty` prompt has in the token's place, (tokens,
    channels) (comfy/sd1_clip.py, ClipTokenWeightEncoder).
    """
    full, factor = states.float(), weights.to(states.device)[..., None]
    if how == "comfy" and empty is not None:
        base = empty.float()
        changed = torch.where(factor == 1, full, (full - base) * factor + base)
    else:
        changed = full * factor
        ratio = full.mean((-2, -1), keepdim=True) / changed.mean((-2, -1), keepdim=True)
        changed = changed * torch.where(torch.isfinite(ratio), ratio, 1.0)
    return changed.to(states.dtype)
