"""How long a denoise step will take: arithmetic over headers, the request, and two speeds of the machine.

Multiplications over how many it does a second, and bytes of streamed weights over how many it reads, casts and lays
out a second. The speeds are corrected by every run (plan/speeds.py). No torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from sdcli.domain import DtypeName, GiveBack, Plan, Request
from sdcli.models.folder import Model
from sdcli.plan.bytes import weights_of

SEQUENTIAL = 1.06
"""Guidance one pass after another takes so many times the time of both at once: smaller matrices."""

GIVING_BACK: dict[GiveBack, float] = {"stage": 1.0, "block": 1.04, "piece": 1.1}
"""Giving memory back takes so many times the time: what is needed again comes as new pages."""

PROMPT_TOKENS = 77

TELLING_FLOPS = 2e11
"""A step of so many operations or more tells how fast the machine is."""

MOST_BYTES = 32e9
"""A second, that streaming is ever believed to reach: what seems faster is arithmetic that was faster than thought."""

RECOMPUTED_FLOPS = 8e6
"""A decoder that computes maps twice does so many operations more for each pixel."""

NEW_WORKER_S = 2.5
"""Until a new worker has imported what it needs."""

_LEVEL = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)")


@dataclass(frozen=True, slots=True)
class Speed:
    """Floating-point operations a second, and bytes of streamed weights a second, in the arithmetic's type.

    Weights of the model's own file are cast and laid out; those of a prepared copy are used where they lie.
    """

    flops: float = 1.0e12
    cast_bytes: float = 0.7e9
    prepared_bytes: float = 16e9

    def stream_bytes(self, plan: Plan) -> float:
        """A second, from where the plan streams."""
        return self.prepared_bytes if plan.prepared else self.cast_bytes


TYPICAL_SPEED = Speed()
"""Two cores of a server's processor with a matrix unit, in bf16."""


def step_seconds(model: Model, request: Request, plan: Plan, dtype: DtypeName, speed: Speed) -> float:
    """One denoise step."""
    streaming = streamed_bytes(model, request, plan, dtype) / speed.stream_bytes(plan)
    return _work(model, request, plan) / speed.flops + streaming


def decode_extra_seconds(request: Request, plan: Plan, speed: Speed) -> float:
    """What saving memory in the decoder costs a run of all pictures."""
    recomputed = request.count * request.height * request.width * RECOMPUTED_FLOPS / speed.flops
    return (recomputed if plan.vae_tile is not None else 0.0) + (NEW_WORKER_S if plan.fresh_decode else 0.0)


def _work(model: Model, request: Request, plan: Plan) -> float:
    """Operations of a step, and as many more as the plan costs time."""
    slower = SEQUENTIAL if request.guided and plan.guidance == "sequential" else 1.0
    return slower * GIVING_BACK[plan.give_back] * step_flops(model, request)


def streamed_bytes(model: Model, request: Request, plan: Plan, dtype: DtypeName) -> int:
    """Bytes of weights that a step streams, in the arithmetic's type: twice in two passes."""
    passes = 2 if request.guided and plan.guidance == "sequential" else 1
    return passes * max(0, weights_of(model.unet, dtype).matrices_bytes - plan.resident_bytes)


@lru_cache(maxsize=64)
def step_flops(model: Model, request: Request) -> float:
    """Multiplications and additions of one step: two for each weight at each place that it is used at.

    And 4 T² C for T tokens attending to each other (Vaswani et al. 2017: Q K^T and its product with V).
    """
    height, width = model.latent_shape(request)
    levels = len(model.unet.config.get("block_out_channels", [320, 640, 1280, 1280]))
    flops = 0.0
    for name, (_, _, info) in model.unet.weights().items():
        if len(info.shape) < 2:
            continue
        places = _places(name, height * width, levels)
        flops += 2 * info.numel * places
        if name.endswith("attn1.to_q.weight"):
            flops += 4 * places * places * info.shape[0]
    return flops * (2 if request.guided else 1)


def _places(name: str, latents: int, levels: int) -> float:
    """At how many places of the map, or of the prompt, a weight is used."""
    if "time_emb" in name:
        return 1
    if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
        return PROMPT_TOKENS
    level = levels - 1 if name.startswith("mid_block") else 0
    if found := _LEVEL.match(name):
        index = int(found[2])
        level = index if found[1] == "down" else levels - 1 - index
        level += {"downsamplers": 1, "upsamplers": -1}.get(found[3], 0)
    return latents / 4**level


def learned(before: Speed, model: Model, request: Request, plan: Plan, dtype: DtypeName, seconds: float) -> Speed:
    """The speeds after a run whose steps took `seconds`: the one that it tells of moves half-way to what it was.

    Small models say nothing: their steps go by in other things than arithmetic. A plan that streams tells of the
    streaming, which a cold page cache makes ten times slower than a warm one; of arithmetic only if all of it took less
    than the arithmetic should have.
    """
    work, streaming = _work(model, request, plan), streamed_bytes(model, request, plan, dtype)
    if step_flops(model, request) < TELLING_FLOPS or seconds <= 0:
        return before
    left = seconds - work / before.flops
    if not streaming or left <= 0:
        return replace(before, flops=(before.flops + work / seconds) / 2)
    rate = (before.stream_bytes(plan) + min(streaming / left, MOST_BYTES)) / 2
    return replace(before, prepared_bytes=rate) if plan.prepared else replace(before, cast_bytes=rate)
