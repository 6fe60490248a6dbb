"""Lending weights to a module: each either resident in the arithmetic's type, or mapped from a file.

A module is built without memory (meta device). Then every weight either moves once to the device ("resident"), or stays
in a memory-mapped file, where it costs no footprint ("streamed"), as its row of the table says, which the host made.
The picture does not depend on it. Biases and norms are always resident (0.1 % of the bytes), and embedding tables
always mapped (a prompt looks up 77 rows of 49,408).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from diffusers.models.activations import GEGLU
from torch import nn

from sdcli.devices.base import Device
from sdcli.domain import Component
from sdcli.units import MIB
from sdcli.uses import WeightRow
from sdcli.weights.adapters import Changes, Merged, changes_of
from sdcli.weights.arena import Arena
from sdcli.weights.beside import Beside
from sdcli.weights.lent import Lent, Packing, set_weight
from sdcli.weights.match import require_match
from sdcli.weights.opaque import moved
from sdcli.weights.packed import Packed, can_map, packing_of
from sdcli.weights.prepared import PreparedCopy
from sdcli.weights.read_ahead import Place
from sdcli.weights.source import Source, Stored

Table = Sequence[WeightRow]
"""The weights of a stage, in the order of use."""


@contextmanager
def lend_weights(
    module: nn.Module,
    component: Component,
    table: Table,
    device: Device,
    dtype: torch.dtype,
    *,
    parts: tuple[str, ...] = ("",),
    packed: bool = False,
    prepared: PreparedCopy | None = None,
    read_ahead: bool = False,
) -> Iterator[Lent]:
    """Lend `component`'s weights to `module` (on the meta device) and free them at the end.

    Those that the table says stay move to the device; the rest stream, with `prepared` from there, and with
    `read_ahead` are read a little before they are used. Only parameters under `parts` are lent. With `packed`, layers
    that gain from it compute with packed weights, laid out for what each of them sees. Layers whose weight is copied
    get none: whoever runs them asks for one with `weight_of`; and those of sliced weights by weights/sliced.py. Raises
    SdcliError where files and module do not match.
    """
    empty = {name: p for name, p in module.named_parameters() if name.startswith(parts)}
    require_match(component, {name: p.shape for name, p in empty.items()}, parts)
    rows = {row.name: row for row in table if row.part == component.name and row.name in empty}
    if rows.keys() != empty.keys():
        raise ValueError(f"the table of weights lacks {sorted(empty.keys() - rows.keys())[:3]}")
    homes = _homes(module, rows)
    lent = Lent(device, dtype)
    try:
        with Source(component) as source:
            stored = {name: source.stored(name, tuple(empty[name].shape)) for name in rows}
            tables = [name for name, row in rows.items() if row.use == "table"]
            copied = [name for name, row in rows.items() if row.use == "copied"]
            sliced = [name for name, row in rows.items() if row.use == "sliced" and not row.stays]
            kept_slices = [name for name, row in rows.items() if row.use == "sliced" and row.stays]
            streamed = [name for name, row in rows.items() if row.use == "matrix" and not row.stays]
            packings = (
                packings_of(module, (row for row in rows.values() if row.use != "sliced"), device, dtype)
                if packed
                else {}
            )
            changes = {name: some for name, some in changes_of(component, source).items() if name in rows}
            stored |= {name: Merged(stored[name], changes[name]) for name in changes.keys() - packings.keys()}

            _lend_packed(lent, {n: packings[n] for n in packings if n not in streamed}, stored, prepared)
            kept = sorted(set(rows) - {*tables, *copied, *sliced, *kept_slices, *streamed, *packings}, key=source.place)
            lent.keep([(homes[n], n.rpartition(".")[2], stored[n]) for n in kept])
            _stream_packed(lent, {n: packings[n] for n in packings if n in streamed}, stored, prepared)
            for name in changes.keys() & packings.keys():
                _add_beside(packings[name][0], homes[name], changes[name], stored[name])
            for name in copied:
                lent.fetch(homes[name], stored[name])
            if kept_slices:
                lent.keep_slices([(homes[name], stored[name]) for name in sorted(kept_slices, key=source.place)])
            for name in sliced:
                lent.slice(name, homes[name], stored[name])
            _stream_plain(lent, module, [name for name in streamed if name not in packings], homes, stored)
            for name in tables:
                lent.look_up(homes[name], stored[name])
            if read_ahead:
                lent.read_ahead({name: _places(name, stored[name], prepared) for name in (*streamed, *sliced)})
            device.synchronize()
            yield lent
    finally:
        lent.return_all()
        for name, parameter in empty.items():
            set_weight(homes[name], name.rpartition(".")[2], parameter)
        device.release()


def packings_of(module: nn.Module, rows: Iterable[WeightRow], device: Device, dtype: torch.dtype) -> dict[str, Packing]:
    """Which of the weights are packed, and for which layers."""
    layers, packings = dict(module.named_modules()), {}
    for row in rows:
        home, _, leaf = row.name.rpartition(".")
        around = layers[home.rpartition(".")[0]]
        layer = around if isinstance(around, GEGLU) else layers[home]
        kind = packing_of(layer, device, dtype) if leaf == "weight" else None
        if kind is not None:
            packings[row.name] = layer, kind, row.sees
    return packings


@contextmanager
def packer(
    module: nn.Module, component: Component, table: Table, device: Device, dtype: torch.dtype
) -> Iterator[tuple[list[str], Callable[[str], list[torch.Tensor]]]]:
    """The names of the weights that are packed for `module`, in the order of use, and what packs one of them."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    require_match(component, shapes, ("",))
    rows = [row for row in table if row.part == component.name]
    packings, lent = packings_of(module, rows, device, dtype), Lent(device, dtype)
    with Source(component) as source:

        def pack(name: str) -> list[torch.Tensor]:
            lent.reserve(shapes[name].numel())
            return lent.pack(packings[name], source.stored(name, tuple(shapes[name])))

        yield [row.name for row in rows if row.name in packings], pack
        lent.return_all()


def _add_beside(layer: nn.Module, home: nn.Module, changes: Changes, base: Stored) -> None:
    """Have a layer that computes with packed weights add what changes its weight, which is that of `home`."""
    forward: Packed = layer.__dict__["forward"]
    forward.beside = Beside(home, changes, base, torch.device("cpu"))


def _homes(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The layers that the parameters belong to."""
    layers = dict(module.named_modules())
    return {name: layers[name.rpartition(".")[0]] for name in names}


def _lend_packed(
    lent: Lent, packings: dict[str, Packing], stored: dict[str, Stored], prepared: PreparedCopy | None
) -> None:
    """Resident packed weights, the largest first while there is most room: each is there twice for a moment."""
    numels = {name: stored[name].tensor.numel() for name in packings}
    sizes = [numel * lent.dtype.itemsize for numel in numels.values()]
    arena = Arena(sum(sizes) * 9 // 8 + len(sizes) * MIB)  # layouts pad, and what is too much is never touched
    for name in sorted(packings, key=lambda name: -numels[name]):
        if prepared is None:
            lent.reserve(numels[name])
            packed = lent.pack(packings[name], stored[name])
            lent.compute_with(packings[name], [moved(one, arena) for one in packed] if can_map() else packed)
        else:
            lent.compute_with(packings[name], prepared.copied(name, arena))
    lent.reserve(0)


def _stream_packed(
    lent: Lent, packings: dict[str, Packing], stored: dict[str, Stored], prepared: PreparedCopy | None
) -> None:
    if prepared is None:
        lent.reserve(max((stored[name].tensor.numel() for name in packings), default=0))
    for name, packing in packings.items():
        if prepared is None:
            lent.compute_packing(name, packing, stored[name])
        else:
            nbytes = sum(nbytes for _, nbytes in prepared.places(name))
            lent.compute_mapped(name, packing, prepared.weights(name), nbytes)


def _stream_plain(
    lent: Lent, module: nn.Module, names: list[str], homes: dict[str, nn.Module], stored: dict[str, Stored]
) -> None:
    """The modules during whose runs weights are needed: a layer, or a feed-forward, which calls its own row by row."""
    runs = [(runner, list(group)) for runner, group in groupby(names, _runner)]
    if runs:
        lent.reserve(max(sum(stored[name].tensor.numel() for name in group) for _, group in runs))
    for runner, group in runs:
        lent.stream(module.get_submodule(runner), [(name, homes[name], stored[name]) for name in group])


def _places(name: str, stored: Stored, prepared: PreparedCopy | None) -> list[Place]:
    """Where a weight that streams is read from, as far as that may be done early."""
    there = prepared.places(name) if prepared is not None else []
    return there or stored.places


def _runner(name: str) -> str:
    before, feed_forward, _ = name.partition(".ff.net.")
    return f"{before}.ff" if feed_forward else name.rpartition(".")[0]
