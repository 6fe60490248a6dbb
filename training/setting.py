"""What every stage of a sitting shares: where it runs, what it reads, and how the device is used."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from training.compose import Composer
from training.glyphs import Glyphs
from training.networks import side
from training.recipes import Planner

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Setting:
    """One sitting. `batch` of 0 is each stage's own; `done` is seconds of earlier sittings, None to read them."""

    glyphs: Glyphs
    device: torch.device
    out: Path
    resume: Path | None = None
    size: str = "full"
    seed: int = 0
    batch: int = 0
    pool: int = 61440
    rate: float = 0.0
    compile: bool = False
    done: float | None = None
    most_steps: int = 10**9

    def planner(self) -> Planner:
        """Draws recipes for the glyphs."""
        return Planner(self.glyphs.names)

    def composer(self) -> Composer:
        """Draws scenes of the model's size on the device."""
        return Composer(self.glyphs.pixels, self.device, side(self.size))


def prepare_device(name: str) -> torch.device:
    """The device, with TF32 where the arithmetic is FP32, and convolutions chosen by trying."""
    device = torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    return device


def autocast(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> AbstractContextManager[Any]:
    """Half-precision arithmetic on a GPU, plain FP32 elsewhere."""
    return torch.autocast(device.type, dtype, enabled=device.type == "cuda")


def fast_layout(module: Module, device: torch.device) -> Module:
    """Channels last on a GPU, where convolutions are quickest so."""
    if device.type == "cuda":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def compiled(module: nn.Module, setting: Setting) -> Any:
    """The module through torch.compile if asked for; what cannot be compiled runs as it is."""
    if not setting.compile:
        return module
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    return torch.compile(module)


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
