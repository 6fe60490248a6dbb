"""What a stage computes with: a device, a type, its way of spending memory, and weights to borrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from sdcli.devices.base import Device
from sdcli.domain import Component, GiveBack
from sdcli.weights.lend import Table, lend_weights
from sdcli.weights.lent import Lent
from sdcli.weights.prepared import PreparedCopy

Kind = type[nn.Module] | None
Note = Callable[[nn.Module, Component, torch.dtype, tuple[str, ...], Kind, Kind], None]
"""Told of a module, of which component, lent in which type under which parts, which kind of layers fetch copies, and of
which slices."""


@dataclass(slots=True)
class Borrow:
    """Handed to a stage of a network, which borrows what it needs and says in `notices` what a person should know."""

    device: Device
    dtype: torch.dtype
    table: Table = ()
    """Of this stage's weights."""
    way: str = ""
    """One of the stage's ways."""
    scratch_bytes: int = 0
    """For attention's scores, where they are kept."""
    give_back: GiveBack = "stage"
    prepared: PreparedCopy | None = None
    repeats: bool = False
    """Whether the stage runs again and again, so that packing its weights and reading them ahead pay."""
    notices: list[str] = field(default_factory=list)
    dry: Note | None = None
    """Where there are neither weights nor numbers and bytes alone are counted, what is told of a loan in its place."""

    @contextmanager
    def weights(
        self,
        module: nn.Module,
        component: Component,
        parts: tuple[str, ...] = ("",),
        fetched: type[nn.Module] | None = None,
        sliced: type[nn.Module] | None = None,
    ) -> Iterator[Lent]:
        """Lend the component's weights under `parts` to a module on the meta device, as the table says.

        Layers of the kind `fetched` get none: `weight_of` makes a copy of theirs for whoever asks. Nor do those of
        the kind `sliced`, whose weights are given out by the slice (weights/sliced.py). A dry run tells the table so.
        """
        if self.dry is not None:
            self.dry(module, component, self.dtype, parts, fetched, sliced)
            yield Lent(self.device, self.dtype)
            return
        with lend_weights(
            module,
            component,
            self.table,
            self.device,
            self.dtype,
            parts=parts,
            packed=self.repeats,
            prepared=self.prepared,
            read_ahead=self.repeats,
        ) as lent:
            yield lent

    def between(self, after: Literal["piece", "block"]) -> None:
        """Call it after each piece of a step and after each block: freed memory goes back, if the plan wants that."""
        if self.give_back in ("piece", after):
            self.device.between_blocks()
