"""A component's weight files, memory-mapped, and whether they hold what its module needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sdcli.errors import SdcliError, echo
from sdcli.models.folder import Component
from sdcli.models.kinds import likely_kind


class Mapped:
    """The component's files, memory-mapped: their tensors are clean pages that cost no footprint."""

    def __init__(self, component: Component) -> None:
        self._tensors = component.weights()
        self._files: dict[Path, Any] = {}

    def __enter__(self) -> Mapped:
        for path in {path for path, _, _ in self._tensors.values()}:
            self._files[path] = safe_open(path, framework="pt", device="cpu")
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.clear()

    def tensor(self, name: str) -> torch.Tensor:
        """The stored tensor, in the file's type. Never write to it: a written page costs memory."""
        path, stored, _ = self._tensors[name]
        tensor: torch.Tensor = self._files[path].get_tensor(stored)
        return tensor

    def place(self, name: str) -> tuple[str, int]:
        """Where the tensor lies, to read files from front to back."""
        path, _, info = self._tensors[name]
        return str(path), info.begin


def require_match(component: Component, shapes: dict[str, torch.Size], parts: tuple[str, ...]) -> None:
    """The files must have exactly the tensors of the module, in its shapes: nothing is ever filled in at random."""
    stored = {name: info.shape for name, (_, _, info) in component.weights().items() if name.startswith(parts)}
    for kind, names in (
        ("lacks the tensors", [name for name in shapes if name not in stored]),
        ("has unexpected tensors:", [name for name in stored if name not in shapes]),
        (
            "has wrong shapes for the tensors",
            [n for n in shapes if n in stored and not _same_shape(shapes[n], stored[n])],
        ),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            likely = likely_kind(stored)
            raise SdcliError(
                f"{echo(component.folder)} {kind} {', '.join(echo(name) for name in names[:3])}{more}:"
                f" not the model that its config describes{f'; it looks like {likely}' if likely else ''}"
            )


def _same_shape(shape: Iterable[int], stored: Iterable[int]) -> bool:
    """Equal up to sides of length 1: old files keep the autoencoder's attention as 1x1 convolutions."""
    return [n for n in shape if n != 1] == [n for n in stored if n != 1]
