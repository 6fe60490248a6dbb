"""What tests of lent weights share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from sdcli.devices.base import DTYPES as NAMED
from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Component, Plan
from sdcli.families.sd import network
from sdcli.machine import ANY_SIZE
from sdcli.plan.counts import StageCount
from sdcli.plan.table import table_of
from sdcli.uses import Use, WeightRow, WeightUse
from sdcli.weights.borrow import Borrow
from sdcli.weights.packed import Packed, can_map, packing_of
from tests.support import RESIDENT, STREAMED

PARTIAL = replace(RESIDENT, residency="partial", resident_bytes=400_000)
PLANS = {"resident": RESIDENT, "partial": PARTIAL, "streamed": STREAMED}
WAYS: list[tuple[Plan, bool]] = [(plan, copied) for copied in (False, True)[: 1 + can_map()] for plan in PLANS.values()]
"""How the denoiser's weights may be lent here: a plan, and whether there is a prepared copy."""

DTYPES = [torch.float32, torch.bfloat16]
DTYPE_NAMES = {dtype: name for name, dtype in NAMED.items()}
PACKED_DTYPES = [dtype for dtype in DTYPES if packing_of(nn.Linear(1, 1), CpuDevice(), dtype)]
"""Those that layers are packed in on this processor; older ones have no kernels for bf16."""

NARROW = PACKED_DTYPES[-1] if PACKED_DTYPES else torch.float32
"""The type with the smallest weights that layers are packed in."""


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal ones, the same for a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(batch: int, height: int = 8, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, a timestep and a context for the tiny model."""
    return numbers(batch, 4, height, width), torch.tensor(500), numbers(batch, 77, 32, seed=2)


def matrices(component: Component) -> dict[str, int]:
    """The weights that may stream, and how many numbers each has."""
    return {name: origin.numel for name, origin in component.weights().items() if len(origin.shape) > 1}


def table(
    component: Component, resident_bytes: int = 0, dtype: torch.dtype = torch.float32, module: nn.Module | None = None
) -> tuple[WeightRow, ...]:
    """A table of a part's weights in the order of its module's own parameters, laid out for no map in particular."""
    module = module or network.build(component)
    layers, uses = dict(module.named_modules()), []
    for name, parameter in module.named_parameters():
        home = layers[name.rpartition(".")[0]]
        use: Use = "table" if isinstance(home, nn.Embedding) else "vector" if parameter.ndim < 2 else "matrix"
        if component.name == "vae" and isinstance(home, nn.Conv2d) and use == "matrix":
            use = "copied"
        uses.append(WeightUse(component.name, name, tuple(parameter.shape), use, ANY_SIZE[1:], 1))
    return table_of(StageCount(tuple(uses), {}), DTYPE_NAMES[dtype], resident_bytes, samples=ANY_SIZE[0])


def borrowing(component: Component, plan: Plan = STREAMED, dtype: torch.dtype = torch.float32, **more: Any) -> Borrow:
    """What a stage that uses this part borrows it by, on the CPU."""
    resident_bytes = 2**60 if plan.residency == "resident" else plan.resident_bytes
    rows = more.pop("table", None) or table(component, resident_bytes, dtype)
    options = {"scratch_bytes": plan.attention_scratch_bytes, "give_back": plan.give_back} | more
    return Borrow(options.pop("device", None) or CpuDevice(), dtype, rows, **options)


def packed_layers(unet: UNet2DConditionModel) -> dict[str, Packed]:
    """The forwards of layers that compute with packed weights."""
    forwards = {name: vars(layer).get("forward") for name, layer in unet.named_modules()}
    return {name: forward for name, forward in forwards.items() if isinstance(forward, Packed)}


def anonymous_bytes() -> int:
    """Memory of this process that no file backs (Linux)."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


def built(**options: Any) -> UNet2DConditionModel:
    """The tiny UNet with random numbers in it and some options changed: diffusers' own."""
    from tests.conftest import TINY

    config = {key: value for key, value in TINY["unet"].items() if key != "_class_name"}
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**config, **options}).eval().requires_grad_(False)
