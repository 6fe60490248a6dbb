"""Lending weights to a module: each either resident in the arithmetic's type, or mapped from a file.

A module is built without memory (meta device). Then every weight matrix either moves once to the device
("resident"), or stays in a memory-mapped file, where it costs no footprint ("streamed"). Any mix is possible:
`resident_bytes` is the dial, and the picture does not depend on it. Biases and norms are always resident
(0.1 % of the bytes), and embedding tables always mapped (a prompt looks up 77 rows of 49,408).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from types import MappingProxyType

import torch
from diffusers.models.activations import GEGLU
from torch import nn

from sdcli.devices.base import Device
from sdcli.domain import MapShape
from sdcli.models.folder import Component
from sdcli.units import MIB
from sdcli.weights.arena import Arena
from sdcli.weights.lent import Lent, Packing, set_weight
from sdcli.weights.mapped import Mapped, counts, require_match
from sdcli.weights.opaque import moved
from sdcli.weights.packed import SOME_MAP, can_map, packing_of
from sdcli.weights.prepared import PreparedCopy
from sdcli.weights.read_ahead import Place

Pieces = Mapping[str, int]
"""Modules in the order of use, and how often the map has been halved when each runs."""

NO_PIECES: Pieces = MappingProxyType({})

Sees = Callable[[str], MapShape]
"""What the layer sees whose weight has this name."""


@contextmanager
def lend_weights(
    module: nn.Module,
    component: Component,
    device: Device,
    dtype: torch.dtype,
    *,
    resident_bytes: int | None = 0,
    parts: tuple[str, ...] = ("",),
    as_stored: type[nn.Module] | None = None,
    packed: bool = False,
    prepared: PreparedCopy | None = None,
    pieces: Pieces = NO_PIECES,
    sees: Sees = lambda name: SOME_MAP,
) -> Iterator[Lent]:
    """Lend `component`'s weights to `module` (on the meta device) and free them at the end.

    `resident_bytes` of weight matrices move to the device, all of them if it is None; the rest stream, with `prepared`
    from there. `pieces` are modules in the order of use, with how often the map has been halved by then: the smallest
    maps' weights stay, since arithmetic hides least of their reading, and the next pieces are read ahead. Only
    parameters under `parts` are lent. With `packed`, layers that gain from it compute with packed weights, laid out
    for what each of them `sees`. Layers of the kind `as_stored` get their weights as they are mapped, in the file's
    type: whoever runs them casts. Raises SdcliError when the files do not match the module.
    """
    shapes = {name: p.shape for name, p in module.named_parameters() if name.startswith(parts)}
    shapes = {name: shapes[name] for name in sorted(shapes, key=_order(pieces))}
    empty = {name: p for name, p in module.named_parameters() if name in shapes}
    require_match(component, shapes, parts)
    homes = _homes(module, shapes)
    lent = Lent(device, dtype)
    try:
        with Mapped(component) as mapped:
            stored = {name: mapped.tensor(name).view(shape) for name, shape in shapes.items()}
            tables = [name for name in shapes if isinstance(homes[name], nn.Embedding)]
            sizes = {n: _size(n, s, dtype, prepared) for n, s in shapes.items() if n not in tables and len(s) > 1}
            streamed = _streamed(sizes, resident_bytes, pieces)
            packings = packings_of(module, shapes, device, dtype, sees) if packed else {}

            _lend_packed(lent, {n: packings[n] for n in packings if n not in streamed}, stored, prepared)
            kept = sorted(set(shapes) - {*tables, *streamed, *packings}, key=mapped.place)
            lent.keep([(homes[n], n.rpartition(".")[2], stored[n]) for n in kept])
            _stream_packed(lent, {n: packings[n] for n in packings if n in streamed}, stored, prepared)
            for name in [name for name in streamed if as_stored and isinstance(homes[name], as_stored)]:
                streamed.remove(name)
                set_weight(homes[name], "weight", stored[name])
            _stream_plain(lent, module, [name for name in streamed if name not in packings], homes, stored)
            for name in tables:
                lent.look_up(homes[name], stored[name])
            if pieces:
                lent.read_ahead({name: _places(name, stored[name], prepared) for name in streamed})
            device.synchronize()
            yield lent
    finally:
        lent.return_all()
        for name, parameter in empty.items():
            set_weight(homes[name], name.rpartition(".")[2], parameter)
        device.release()


def packings_of(
    module: nn.Module, names: Iterable[str], device: Device, dtype: torch.dtype, sees: Sees
) -> dict[str, Packing]:
    """Which of the weights are packed, and for which layers."""
    layers, packings = dict(module.named_modules()), {}
    for name in names:
        home, _, leaf = name.rpartition(".")
        around = layers[home.rpartition(".")[0]]
        layer = around if isinstance(around, GEGLU) else layers[home]
        kind = packing_of(layer, device, dtype) if leaf == "weight" else None
        if kind is not None:
            packings[name] = layer, kind, sees(name)
    return packings


@contextmanager
def packer(
    module: nn.Module,
    component: Component,
    device: Device,
    dtype: torch.dtype,
    pieces: Pieces = NO_PIECES,
    sees: Sees = lambda name: SOME_MAP,
) -> Iterator[tuple[list[str], Callable[[str], list[torch.Tensor]]]]:
    """The names of the weights that are packed for `module`, in the order of use, and what packs one of them."""
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    require_match(component, shapes, ("",))
    packings, lent = packings_of(module, shapes, device, dtype, sees), Lent(device, dtype)
    with Mapped(component) as mapped:

        def pack(name: str) -> list[torch.Tensor]:
            lent.reserve(shapes[name].numel())
            return lent.pack(packings[name], mapped.tensor(name).view(shapes[name]))

        yield sorted(packings, key=_order(pieces)), pack
        lent.return_all()


def _homes(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The layers that the parameters belong to."""
    layers = dict(module.named_modules())
    return {name: layers[name.rpartition(".")[0]] for name in names}


def _lend_packed(
    lent: Lent, packings: dict[str, Packing], stored: dict[str, torch.Tensor], prepared: PreparedCopy | None
) -> None:
    """Resident packed weights, the largest first while there is most room: each is there twice for a moment."""
    sizes = [stored[name].numel() * lent.dtype.itemsize for name in packings]
    arena = Arena(sum(sizes) * 9 // 8 + len(sizes) * MIB)  # layouts pad, and what is too much is never touched
    for name in sorted(packings, key=lambda name: -stored[name].numel()):
        if prepared is None:
            lent.reserve(stored[name].numel())
            packed = lent.pack(packings[name], stored[name])
            lent.compute_with(packings[name], [moved(one, arena) for one in packed] if can_map() else packed)
        else:
            lent.compute_with(packings[name], prepared.copied(name, arena))
    lent.reserve(0)


def _stream_packed(
    lent: Lent, packings: dict[str, Packing], stored: dict[str, torch.Tensor], prepared: PreparedCopy | None
) -> None:
    if prepared is None:
        lent.reserve(max((stored[name].numel() for name in packings), default=0))
    for name, packing in packings.items():
        if prepared is None:
            lent.compute_packing(name, packing, stored[name])
        else:
            nbytes = sum(nbytes for _, nbytes in prepared.places(name))
            lent.compute_mapped(name, packing, prepared.weights(name), nbytes)


def _stream_plain(
    lent: Lent, module: nn.Module, names: list[str], homes: dict[str, nn.Module], stored: dict[str, torch.Tensor]
) -> None:
    """The modules during whose runs weights are needed: a layer, or a feed-forward, which calls its own row by row."""
    runs = [(runner, list(group)) for runner, group in groupby(names, _runner)]
    if runs:
        lent.reserve(max(sum(stored[name].numel() for name in group) for _, group in runs))
    for runner, group in runs:
        lent.stream(module.get_submodule(runner), [(name, homes[name], stored[name]) for name in group])


def _order(pieces: Pieces) -> Callable[[str], int]:
    """Sorts parameters by the piece that they belong to; those of none come first."""
    places = {piece: index for index, piece in enumerate(pieces)}
    return lambda name: places.get(piece_of(name, pieces), -1)


def piece_of(name: str, pieces: Pieces) -> str:
    """The piece that a parameter belongs to, empty for none."""
    while name and name not in pieces:
        name = name.rpartition(".")[0]
    return name


def _places(name: str, stored: torch.Tensor, prepared: PreparedCopy | None) -> list[Place]:
    """Where a weight that streams is read from, as far as that may be done early: not where pages count."""
    there = prepared.places(name) if prepared is not None else []
    return there or ([] if counts(stored) else [(stored.data_ptr(), stored.nbytes)])


def _size(name: str, shape: torch.Size, dtype: torch.dtype, prepared: PreparedCopy | None) -> int:
    """Bytes of a weight in memory. Packed ones are larger where their layout pads, as the prepared copy knows."""
    there = prepared.places(name) if prepared is not None else []
    return sum(nbytes for _, nbytes in there) or shape.numel() * dtype.itemsize


def _streamed(sizes: dict[str, int], resident_bytes: int | None, pieces: Pieces) -> list[str]:
    """Names of the weights that stream: those left when the smallest maps' have spent the budget."""
    left, streamed = math.inf if resident_bytes is None else resident_bytes, set()
    for name in sorted(sizes, key=lambda name: -pieces.get(piece_of(name, pieces), 0)):
        if sizes[name] > left:
            streamed.add(name)
        else:
            left -= sizes[name]
    return [name for name in sizes if name in streamed]


def _runner(name: str) -> str:
    before, feed_forward, _ = name.partition(".ff.net.")
    return f"{before}.ff" if feed_forward else name.rpartition(".")[0]
