"""Weights while they are lent: kept on the device, packed, mapped, or cast for as long as a layer runs.

How a layer uses a streamed weight is a matter of where it lies. In a prepared copy (weights/prepared.py) it is used
in place. In the model's own file it is cast for as long as its layer runs, into one buffer that all layers share; and
where kernels want packed weights, packed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from sdcli.devices.base import Device
from sdcli.uses import MapShape
from sdcli.weights.packed import Packed
from sdcli.weights.read_ahead import Place, ReadAhead
from sdcli.weights.sliced import KeptSlices, StoredSlices, set_slices
from sdcli.weights.source import Stored

Packing = tuple[nn.Module, type[Packed], MapShape]
"""Whose forward uses a weight, how it is packed for that, and the map that the layer sees."""


RECENT_MOST = 4
"""Weights that are remembered as they were packed: an attention goes by turns to four layers, for one sample after
another, and a feed-forward to two, for some tokens after others."""


class Lent:
    """The weights of one module while they are lent. `bytes_read` counts what streaming read from the files."""

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        self.bytes_read = 0
        self.dtype = dtype
        self._device = device
        self._hooks: list[Any] = []
        self._replaced: list[tuple[nn.Module, Any]] = []
        self._fetched: list[nn.Module] = []
        self._sliced: list[nn.Module] = []
        self._buffer = torch.empty(0)
        self._recent: OrderedDict[str, list[torch.Tensor]] = OrderedDict()
        self._reader: ReadAhead | None = None

    def reserve(self, numel: int) -> None:
        """Make the one buffer that weights are cast into, unless it is just that large."""
        if self._buffer.numel() == numel:
            return
        self._buffer = torch.empty(0)  # the old one goes before the new one comes
        self._buffer = torch.empty(numel, dtype=self.dtype, device=self._device.torch_device)

    def keep(self, layers: list[tuple[nn.Module, str, Stored]]) -> None:
        """Keep these (layer, parameter's name, stored weight) on the device."""
        store = self._device.weight_store(self.dtype, [stored.tensor.numel() for _, _, stored in layers])
        for layer, leaf, stored in layers:
            room = store.take((stored.tensor.numel(),))
            set_weight(layer, leaf, stored.fill(_laid_out(room, stored.tensor.shape, self._device.memory_format)))

    def pack(self, packing: Packing, stored: Stored) -> list[torch.Tensor]:
        """The stored weight, cast and in the kernels' own layout."""
        layer, kind, sees = packing
        shape = stored.tensor.shape
        return kind.pack(layer, stored.fill(self._buffer[: shape.numel()].view(shape)), sees)

    def compute_with(self, packing: Packing, packed: list[torch.Tensor]) -> None:
        """Have the layer compute with packed weights."""
        layer, kind, _ = packing
        self._run_instead(layer, kind(layer, lambda: packed))

    def compute_mapped(self, name: str, packing: Packing, packed: list[torch.Tensor], nbytes: int) -> None:
        """The same with weights that are read from a file, so many bytes each time."""
        layer, kind, _ = packing

        def give() -> list[torch.Tensor]:
            self._reads(name, nbytes)
            return packed

        self._run_instead(layer, kind(layer, give))

    def compute_packing(self, name: str, packing: Packing, stored: Stored) -> None:
        """Have the layer's weight cast and packed whenever it is needed, unless it was needed a moment ago.

        A few are remembered, and no more than the buffer has: they lie in the heap, where what the work around them
        makes finds no room then.
        """
        layer, kind, _ = packing

        def make() -> list[torch.Tensor]:
            if name not in self._recent:
                room = self._buffer.numel() - stored.tensor.numel()
                while self._recent and (len(self._recent) == RECENT_MOST or self._remembered() > room):
                    self._recent.popitem(last=False)
                self._reads(name, stored.tensor.nbytes)
                with self._device.exact():  # in the heap they took 82 MiB more of a step of SD 1.5
                    self._recent[name] = self.pack(packing, stored)
            return self._recent[name]

        self._run_instead(layer, kind(layer, make))

    def _remembered(self) -> int:
        return sum(one.numel() for packed in self._recent.values() for one in packed)

    def _reads(self, name: str, nbytes: int) -> None:
        self.bytes_read += nbytes
        if self._reader is not None:
            self._reader.reach(name)

    def stream(self, runner: nn.Module, layers: list[tuple[str, nn.Module, Stored]]) -> None:
        """Leave the weights of `layers` mapped; while `runner` runs, lend them the buffer with cast copies."""
        views, at = [], 0
        for _, _, stored in layers:
            shape = stored.tensor.shape
            flat = self._buffer[at : at + shape.numel()]
            views.append(_laid_out(flat, shape, self._device.memory_format))
            at += shape.numel()

        def lend(module: nn.Module, args: Any) -> None:
            for (name, layer, stored), view in zip(layers, views, strict=True):
                self._reads(name, stored.tensor.nbytes)
                set_weight(layer, "weight", stored.fill(view))

        def take_back(module: nn.Module, args: Any, output: Any) -> None:
            for _, layer, stored in layers:
                set_weight(layer, "weight", stored.tensor)

        take_back(runner, None, None)
        self._hooks += [runner.register_forward_pre_hook(lend), runner.register_forward_hook(take_back)]

    def fetch(self, layer: nn.Module, stored: Stored) -> None:
        """Leave the layer without its weight, and have `weight_of` make a copy in the arithmetic's type."""
        layer.__dict__["fetch"] = lambda: stored.cast(self._device.torch_device, self.dtype)
        self._fetched.append(layer)

    def slice(self, name: str, layer: nn.Module, stored: Stored) -> None:
        """Leave the layer without its weight, and have `slices_of` give some of it at a time."""

        def reads(nbytes: int) -> None:
            self._reads(name, nbytes)

        set_slices(layer, StoredSlices(stored, self._device.torch_device, self.dtype, reads))
        self._sliced.append(layer)

    def keep_slices(self, layers: list[tuple[nn.Module, Stored]]) -> None:
        """Keep the weights of these layers on the device, and have `slices_of` give views of them."""
        store = self._device.weight_store(self.dtype, [stored.tensor.numel() for _, stored in layers])
        for layer, stored in layers:
            room = store.take((stored.tensor.numel(),))
            set_slices(layer, KeptSlices(stored.fill(room.view(stored.tensor.shape))))
            self._sliced.append(layer)

    def look_up(self, layer: nn.Module, stored: Stored) -> None:
        """Leave an embedding table mapped, and cast the few rows that were looked up."""

        def fetch(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (args[0].cpu(),)

        def cast(module: nn.Module, args: Any, rows: torch.Tensor) -> torch.Tensor:
            return rows.to(self._device.torch_device, self.dtype)

        set_weight(layer, "weight", stored.tensor)
        if not stored.is_plain:
            self._run_instead(layer, stored.rows)
        self._hooks += [layer.register_forward_pre_hook(fetch), layer.register_forward_hook(cast)]

    def read_ahead(self, places: dict[str, list[Place]]) -> None:
        """Have what streams brought into the page cache a little before it is used: names in the order of use."""
        if any(places.values()):
            self._reader = ReadAhead(places, self._device.ahead_bytes)

    def return_all(self) -> None:
        """End the loan."""
        if self._reader is not None:
            self._reader.remove()
            self._reader = None
        for hook in self._hooks:
            hook.remove()
        for layer, before in self._replaced:
            del layer.forward
            if before is not None:
                layer.forward = before
        for layer in self._fetched:
            del layer.__dict__["fetch"]
        for layer in self._sliced:
            del layer.__dict__["slices"]
        self._hooks.clear()
        self._replaced.clear()
        self._fetched.clear()
        self._sliced.clear()
        self._recent.clear()
        self._buffer = torch.empty(0)

    def _run_instead(self, layer: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
        self._replaced.append((layer, layer.__dict__.get("forward")))
        layer.forward = forward


def _laid_out(flat: torch.Tensor, shape: Iterable[int], memory_format: torch.memory_format) -> torch.Tensor:
    """A view of `flat` in `shape`, whose convolution kernels lie as the device likes its activations to lie."""
    sides = tuple(shape)
    if len(sides) != 4 or memory_format is not torch.channels_last:
        return flat.view(sides)
    out, into, height, width = sides
    return flat.view(out, height, width, into).permute(0, 3, 1, 2)


def weight_of(layer: nn.Module, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The layer's weight on the device in this type, for as long as the caller holds it."""
    fetch = layer.__dict__.get("fetch")
    if fetch is not None:
        copy: torch.Tensor = fetch()
        return copy
    kept: Any = layer._parameters["weight"]
    return kept.to(device, dtype)


def set_weight(layer: nn.Module, leaf: str, value: torch.Tensor) -> None:
    """Put a plain tensor where the layer's parameter is."""
    layer._parameters[leaf] = value  # type: ignore[assignment]  # annotated as parameters only
