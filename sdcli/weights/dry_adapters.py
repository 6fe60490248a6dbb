"""Adapters in a dry run (engine/dry_run.py): what they take beside a layer, or merged into its weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sdcli.devices.base import Device
from sdcli.domain import Adapter, Origin
from sdcli.weights.adapters import Changes
from sdcli.weights.beside import Beside
from sdcli.weights.packed import packing_of

META = torch.device("meta")


def add_dry(layer: nn.Module, adapters: tuple[Adapter, ...], device: Device, dtype: torch.dtype, packed: bool) -> None:
    """Have a layer on the meta device go through what its adapters would take on `device`.

    A GEGLU's two halves are added apart, which takes no more than both at once.
    """
    changes = Changes(adapters, _without_numbers)
    if packed and packing_of(layer, device, dtype) is not None:
        beside = Beside(layer, changes, None, META)

        def add(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            beside.given(args[0])
            return beside.add(args[0], output)

        layer.register_forward_hook(add)
    else:
        layer.register_forward_pre_hook(lambda *_: _take(changes.merging_bytes))


def _without_numbers(origin: Origin, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(origin.shape, dtype=dtype, device=META)


def _take(nbytes: int) -> None:
    torch.empty(nbytes, dtype=torch.uint8, device=META)
