"""Whether a component's files hold what its module needs: nothing is ever filled in at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo
from sdcli.families.kinds import likely_kind

SHOWN = 3
"""Tensors that a message names at most."""


def require_match(component: Component, shapes: Mapping[str, Iterable[int]], parts: tuple[str, ...]) -> None:
    """Raise SdcliError unless the files have exactly these tensors, in these shapes, under `parts`."""
    stored = {name: origin.shape for name, origin in component.weights().items() if name.startswith(parts)}
    for kind, names in (
        ("lacks the tensors", [name for name in shapes if name not in stored]),
        ("has unexpected tensors:", [name for name in stored if name not in shapes]),
        (
            "has wrong shapes for the tensors",
            [n for n in shapes if n in stored and not _same_shape(shapes[n], stored[n])],
        ),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            likely = likely_kind(stored)
            raise SdcliError(
                f"{echo(component.folder)} {kind} {', '.join(echo(name) for name in names[:SHOWN])}{more}:"
                f" not the model that its config describes{f'; it looks like {likely}' if likely else ''}"
            )


def _same_shape(shape: Iterable[int], stored: Iterable[int]) -> bool:
    """Equal up to sides of length 1: old files keep the autoencoder's attention as 1x1 convolutions."""
    return [n for n in shape if n != 1] == [n for n in stored if n != 1]
