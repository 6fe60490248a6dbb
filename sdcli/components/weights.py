"""Lending weights to a module: each either resident in the arithmetic's type, or mapped and cast when used.

A module is built without memory (meta device). Then every weight matrix either moves once to the device
("resident"), or stays in the memory-mapped file, where it costs no footprint, and is cast into one buffer
that all streamed layers share, for just as long as its layer runs ("streamed"); of a large one a slice at a time, and
the layer computes those channels of its output. Any mix is possible:
`resident_bytes` is the dial, and the picture does not depend on it. Biases and norms are always resident
(0.1 % of the bytes), and embedding tables always mapped (a prompt looks up 77 rows of 49,408).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from sdcli.components.packed import can_pack, pack
from sdcli.devices.base import Device
from sdcli.errors import SdcliError, echo
from sdcli.memory.footprint import SLICE_BYTES
from sdcli.models.folder import Component


class Lent:
    """The weights of one module while they are lent. `bytes_read` counts what streaming read from the files."""

    def __init__(self, device: Device, dtype: torch.dtype) -> None:
        self.bytes_read = 0
        self._device, self._dtype = device, dtype
        self._hooks: list[Any] = []
        self._replaced: list[tuple[nn.Module, Any]] = []
        self._buffer = torch.empty(0)

    def reserve(self, numel: int) -> None:
        """Make the one buffer that weights are cast into, unless it is just that large."""
        if self._buffer.numel() == numel:
            return
        self._buffer = torch.empty(0)  # the old one goes before the new one comes
        self._buffer = torch.empty(numel, dtype=self._dtype, device=self._device.torch_device)

    def pack(self, layer: nn.Conv2d, stored: torch.Tensor) -> None:
        """Keep the layer's weight in the kernels' own layout."""
        cast = self._buffer[: stored.numel()].view(stored.shape).copy_(stored)
        self._run_instead(layer, pack(layer, cast))

    def keep(self, layers: list[tuple[nn.Module, str, torch.Tensor]]) -> None:
        """Keep these (layer, parameter's name, stored tensor) on the device."""
        store = self._device.weight_store(self._dtype, [stored.numel() for _, _, stored in layers])
        for layer, leaf, stored in layers:
            _set(layer, leaf, store.take(tuple(stored.shape)).copy_(stored))

    def stream(self, runner: nn.Module, layers: list[tuple[nn.Module, torch.Tensor]]) -> None:
        """Leave the weights of `layers` mapped; while `runner` runs, lend them the buffer with cast copies."""
        views, at = [], 0
        for _, stored in layers:
            flat = self._buffer[at : at + stored.numel()]
            views.append(_laid_out(flat, stored.shape, self._device.memory_format))
            at += stored.numel()

        def lend(module: nn.Module, args: Any) -> None:
            for (layer, stored), view in zip(layers, views, strict=True):
                _set(layer, "weight", view.copy_(stored))
                self.bytes_read += stored.nbytes

        def take_back(module: nn.Module, args: Any, output: Any) -> None:
            for layer, stored in layers:
                _set(layer, "weight", stored)

        take_back(runner, None, None)
        self._hooks += [runner.register_forward_pre_hook(lend), runner.register_forward_hook(take_back)]

    def stream_sliced(self, layer: nn.Module, stored: torch.Tensor) -> None:
        """The same for one large layer, whose output is put together from slices of its channels."""
        _set(layer, "weight", stored)
        compute = _convolve if isinstance(layer, nn.Conv2d) else _multiply
        some = _rows(stored.shape, self._dtype)

        def forward(states: torch.Tensor) -> torch.Tensor:
            output = torch.empty(0)
            for begin in range(0, len(stored), some):
                part = stored[begin : begin + some]
                weight = _laid_out(self._buffer[: part.numel()], part.shape, self._device.memory_format).copy_(part)
                self.bytes_read += part.nbytes
                output = compute(layer, states, weight, slice(begin, begin + len(part)), output)
            return output

        self._run_instead(layer, forward)

    def _run_instead(self, layer: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._replaced.append((layer, layer.__dict__.get("forward")))
        layer.forward = forward

    def look_up(self, layer: nn.Embedding, stored: torch.Tensor) -> None:
        """Leave an embedding table mapped, and cast the few rows that were looked up."""

        def fetch(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (args[0].cpu(),)

        def cast(module: nn.Module, args: Any, rows: torch.Tensor) -> torch.Tensor:
            return rows.to(self._device.torch_device, self._dtype)

        _set(layer, "weight", stored)
        self._hooks += [layer.register_forward_pre_hook(fetch), layer.register_forward_hook(cast)]

    def return_all(self) -> None:
        """End the loan."""
        for hook in self._hooks:
            hook.remove()
        for layer, before in self._replaced:
            del layer.forward
            if before is not None:
                layer.forward = before
        self._hooks.clear()
        self._replaced.clear()
        self._buffer = torch.empty(0)


@contextmanager
def lend_weights(
    module: nn.Module,
    component: Component,
    device: Device,
    dtype: torch.dtype,
    *,
    resident_bytes: int = 0,
    parts: tuple[str, ...] = ("",),
    as_stored: type[nn.Module] | None = None,
) -> Iterator[Lent]:
    """Lend `component`'s weights to `module` (on the meta device) and free them at the end.

    `resident_bytes` of weight matrices, counted in `dtype`, move to the device, in the order of use; the
    rest stream. Only parameters under `parts` are lent. Layers of the kind `as_stored` get their weights as they are
    mapped, in the file's type: whoever runs them casts. Raises SdcliError when the files do not match the module.
    """
    shapes = {name: p.shape for name, p in module.named_parameters() if name.startswith(parts)}
    empty = {name: p for name, p in module.named_parameters() if name in shapes}
    _require_match(component, shapes, parts)
    layers = dict(module.named_modules())
    homes = {name: layers[name.rpartition(".")[0]] for name in shapes}
    lent = Lent(device, dtype)
    try:
        with _Mapped(component) as mapped:
            tables = [name for name in shapes if isinstance(homes[name], nn.Embedding)]
            resident, streamed = _split({n: s for n, s in shapes.items() if n not in tables}, dtype, resident_bytes)
            packed = [name for name in resident if name.endswith("weight") and can_pack(homes[name], device)]
            packed.sort(key=lambda name: -shapes[name].numel())  # the largest while there is most room

            for name in packed:
                lent.reserve(shapes[name].numel())
                lent.pack(homes[name], mapped.tensor(name).view(shapes[name]))
            kept = sorted(resident - set(packed), key=mapped.place)
            lent.keep([(homes[n], n.rpartition(".")[2], mapped.tensor(n).view(shapes[n])) for n in kept])

            for name in [name for name in streamed if as_stored and isinstance(homes[name], as_stored)]:
                streamed.remove(name)
                _set(homes[name], "weight", mapped.tensor(name).view(shapes[name]))
            runs = _runs(streamed, shapes, dtype)
            lent.reserve(max((_room(names, shapes, dtype) for _, names in runs), default=0))
            for runner, names in runs:
                lending = [(homes[n], mapped.tensor(n).view(shapes[n])) for n in names]
                if _is_large(names, shapes, dtype):
                    lent.stream_sliced(*lending[0])
                else:
                    lent.stream(layers[runner], lending)
            for name in tables:
                lent.look_up(homes[name], mapped.tensor(name).view(shapes[name]))
            device.synchronize()
            yield lent
    finally:
        lent.return_all()
        for name, parameter in empty.items():
            _set(homes[name], name.rpartition(".")[2], parameter)
        device.release()


def _split(shapes: dict[str, torch.Size], dtype: torch.dtype, resident_bytes: int) -> tuple[set[str], list[str]]:
    """Names of resident and of streamed weights: matrices stay while the budget lasts, vectors always."""
    resident, streamed, left = set(), [], resident_bytes
    for name, shape in shapes.items():
        size = shape.numel() * dtype.itemsize
        if len(shape) < 2:
            resident.add(name)
        elif size <= left:
            resident.add(name)
            left -= size
        else:
            streamed.append(name)
    return resident, streamed


def _runs(streamed: list[str], shapes: dict[str, torch.Size], dtype: torch.dtype) -> list[tuple[str, list[str]]]:
    """The modules during whose runs weights are needed: a layer, or a feed-forward, which calls its own row by row."""
    runs = []
    for runner, group in groupby(streamed, _runner):
        names = list(group)
        if _is_large(names, shapes, dtype):
            runs += [(name.rpartition(".")[0], [name]) for name in names]
        else:
            runs.append((runner, names))
    return runs


def _is_large(names: list[str], shapes: dict[str, torch.Size], dtype: torch.dtype) -> bool:
    return sum(shapes[name].numel() for name in names) * dtype.itemsize > SLICE_BYTES


def _room(names: list[str], shapes: dict[str, torch.Size], dtype: torch.dtype) -> int:
    """Numbers that are cast at a time."""
    if _is_large(names, shapes, dtype):
        return max(_rows(shapes[name], dtype) * shapes[name][1:].numel() for name in names)
    return sum(shapes[name].numel() for name in names)


def _rows(shape: torch.Size, dtype: torch.dtype) -> int:
    """Output channels of a slice: equal shares, as few as SLICE_BYTES allows."""
    shares = math.ceil(shape.numel() * dtype.itemsize / SLICE_BYTES)
    return math.ceil(shape[0] / shares)


def _runner(name: str) -> str:
    before, feed_forward, _ = name.partition(".ff.net.")
    return f"{before}.ff" if feed_forward else name.rpartition(".")[0]


def _convolve(
    layer: Any, states: torch.Tensor, weight: torch.Tensor, channels: slice, output: torch.Tensor
) -> torch.Tensor:
    """These channels of a convolution, put into `output`, which is made for the first of them."""
    bias = None if layer.bias is None else layer.bias[channels]
    some = F.conv2d(states, weight, bias, layer.stride, layer.padding, layer.dilation)
    if not output.numel():
        shape, layout = (len(some), layer.out_channels, *some.shape[2:]), torch.channels_last
        contiguous = some.is_contiguous(memory_format=layout)
        output = some.new_empty(shape).contiguous(memory_format=layout if contiguous else torch.contiguous_format)
    output[:, channels] = some
    return output


def _multiply(
    layer: Any, states: torch.Tensor, weight: torch.Tensor, channels: slice, output: torch.Tensor
) -> torch.Tensor:
    """The same for a linear layer, a sample at a time (components/frugal.py says why)."""
    if not output.numel():
        output = states.new_empty(*states.shape[:-1], layer.out_features)
    for sample in range(len(states)):
        one = slice(sample, sample + 1)
        output[one, ..., channels] = F.linear(states[one], weight, None if layer.bias is None else layer.bias[channels])
    return output


def _laid_out(flat: torch.Tensor, shape: Iterable[int], memory_format: torch.memory_format) -> torch.Tensor:
    """A view of `flat` in `shape`, whose convolution kernels lie as the device likes its activations to lie."""
    sides = tuple(shape)
    if len(sides) != 4 or memory_format is not torch.channels_last:
        return flat.view(sides)
    out, into, height, width = sides
    return flat.view(out, height, width, into).permute(0, 3, 1, 2)


def _set(layer: nn.Module, leaf: str, value: torch.Tensor) -> None:
    """Put a plain tensor where the layer's parameter is."""
    layer._parameters[leaf] = value  # type: ignore[assignment]  # annotated as parameters only


class _Mapped:
    """The component's files, memory-mapped: their tensors are clean pages that cost no footprint."""

    def __init__(self, component: Component) -> None:
        self._tensors = component.weights()
        self._files: dict[Path, Any] = {}

    def __enter__(self) -> _Mapped:
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


def _require_match(component: Component, shapes: dict[str, torch.Size], parts: tuple[str, ...]) -> None:
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
            raise SdcliError(
                f"{echo(component.folder)} {kind} {', '.join(map(echo, names[:3]))}{more}:"
                " not the model that its config describes"
            )


def _same_shape(shape: Iterable[int], stored: Iterable[int]) -> bool:
    """Equal up to sides of length 1: old files keep the autoencoder's attention as 1x1 convolutions."""
    return [n for n in shape if n != 1] == [n for n in stored if n != 1]
