"""A run without memory and without arithmetic: shapes alone go through the modules; bytes and operations are counted.

Modules are built on the meta device, where a tensor has a shape and no numbers. Whatever a stage allocates is counted
as long as anybody holds it, so that the most that was alive at once is exact for the code as it runs. Weights are not
counted: how many of them lie in memory is the plan's business.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sdcli.units import MIB
from sdcli.uses import Use, WeightUse
from sdcli.weights.sliced import DrySlices, set_slices

META = torch.device("meta")

HEAP_BYTES = 32 * MIB
"""An allocation of so much or more is a mapping of its own, and leaves no gap behind (devices/cpu.py)."""


class DryRun:
    """Counts while it is entered: `peak_bytes` alive at once, `flops`, different `kernels`, and uses of weights."""

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = self.heap_bytes = self.heap_peak_bytes = 0
        self.flops = 0.0
        self.kernels: set[tuple[object, ...]] = set()
        self._alive: set[int] = set()
        self._names: dict[int, tuple[str, str, torch.Size]] = {}
        self._uses: dict[tuple[str, str], WeightUse] = {}
        self._copied: set[tuple[str, str]] = set()
        self._sliced: set[tuple[str, str]] = set()
        self._modes = (torch.no_grad(), _WithoutNumbers(self), _Counting(self))

    def know(self, part: str, module: nn.Module, under: tuple[str, ...] = ("",)) -> None:
        """The module's parameters are weights of this part: not counted as allocations, their uses noted."""
        for name, parameter in module.named_parameters():
            if name.startswith(under):
                self._names[_storage(parameter)] = part, name, parameter.shape

    def copies(self, part: str, name: str, layer: nn.Module) -> None:
        """The layer makes copies of this weight (weights/lent.py, `weight_of`), each there twice as it is laid out."""
        self._copied.add((part, name))

        def fetch() -> torch.Tensor:
            copy = torch.empty_like(layer.get_parameter("weight"))
            torch.empty_like(copy)
            return copy

        layer.__dict__["fetch"] = fetch

    def slices(self, part: str, name: str, layer: nn.Module, lies: bool) -> None:
        """The layer's weight is given out by the slice, which is a copy unless it `lies` as the arithmetic wants it."""
        self._sliced.add((part, name))
        weight = layer.get_parameter("weight").detach()
        set_slices(layer, DrySlices(weight, lies, lambda: self._used(weight, "sliced", (1, 1), 0)))

    def __enter__(self) -> DryRun:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)

    @property
    def weights(self) -> tuple[WeightUse, ...]:
        """All weights in the order of their first use, those that were not seen last."""
        unseen = [
            WeightUse(part, name, tuple(shape), "matrix" if is_matrix(name, shape) else "vector", (1, 1), 0)
            for part, name, shape in self._names.values()
            if (part, name) not in self._uses
        ]
        every = (*self._uses.values(), *unseen)
        return tuple(replace(use, use=self._use_of(use)) for use in every)

    def _use_of(self, use: WeightUse) -> Use:
        key = use.part, use.name
        return "copied" if key in self._copied else "sliced" if key in self._sliced else use.use

    def allocated(self, tensor: torch.Tensor) -> None:
        """A tensor came out of an operation; views of what is known are not new."""
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if tensor.device.type != "meta" or key in self._alive or key in self._names:
            return
        self._alive.add(key)
        self.live_bytes += nbytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        self.heap_bytes += nbytes if nbytes < HEAP_BYTES else 0
        self.heap_peak_bytes = max(self.heap_peak_bytes, self.heap_bytes)
        weakref.finalize(storage, self._freed, key, nbytes)

    def _freed(self, key: int, nbytes: int) -> None:
        self._alive.discard(key)
        self.live_bytes -= nbytes
        self.heap_bytes -= nbytes if nbytes < HEAP_BYTES else 0

    def multiplied(self, name: str, args: tuple[Any, ...], outputs: torch.Tensor) -> None:
        """Count an operation, and what it says of its weight."""
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
        weight = next((t for t in tensors if t.dim() > 1 and _storage(t) in self._names), None)
        others = [t for t in tensors if t is not weight and t.dim() > 1]
        if name == "embedding":
            self._used(weight, "table", (1, 1), 0)
        elif name.startswith("convolution"):
            self.flops += 2 * outputs.numel() * args[1][0].numel()
            self._used(weight, "matrix", (args[0].shape[2], args[0].shape[3]), outputs.numel() // outputs.shape[1])
            self.kernels.add((name, args[0].shape, args[1].shape))
        elif name in ("mm", "addmm", "addmm_", "bmm", "baddbmm"):
            one, other = others[-2:] if weight is None else (others[-1], weight)
            self.flops += 2 * outputs.numel() * one.shape[-1]
            rows = outputs.numel() // outputs.shape[-1]
            self._used(weight, "matrix", (1, rows), rows)
            self.kernels.add((name, one.shape, other.shape))

    def attended(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Q K^T and its product with V (Vaswani et al. 2017), by a kernel that keeps no scores."""
        self.flops += 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        self.kernels.add(("attention", query.shape, key.shape))
        return torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=META)

    def _used(self, weight: torch.Tensor | None, use: Use, sees: tuple[int, int], places: int) -> None:
        if weight is None:
            return
        part, name, shape = self._names[_storage(weight)]
        before = self._uses.get((part, name))
        if before is not None:
            sees, places = before.sees, before.places + places
        self._uses[part, name] = WeightUse(part, name, tuple(shape), use, sees, places)


def is_matrix(name: str, shape: torch.Size) -> bool:
    """Whether a parameter is a layer's weight, which may stream: a learned token is none, however many sides it has."""
    return len(shape) > 1 and name.rpartition(".")[2] == "weight"


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Counting(TorchDispatchMode):
    """Sees every operation that allocates. Those without a kernel for shapes get one here: torch's own are in a module
    that the worker does not import (engine/lean_imports.py)."""

    def __init__(self, counts: DryRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        outputs = _SHAPES.get(name, func)(*args, **(kwargs or {}))
        for output in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            if isinstance(output, torch.Tensor):
                self._counts.allocated(output)
        if isinstance(outputs, torch.Tensor):
            self._counts.multiplied(name, args, outputs)
        return outputs


class _WithoutNumbers(TorchFunctionMode):
    """What a tensor without numbers cannot do: attention keeps no scores, lists are of ones, and nothing moves."""

    def __init__(self, counts: DryRun) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        first = args[0] if args else None
        if not isinstance(first, torch.Tensor) or first.device.type != "meta":
            return func(*args, **given)
        if func is F.scaled_dot_product_attention:
            return self._counts.attended(*args[:3])
        if func is F.group_norm:  # which would lay channels out one after another first, as it does on no CPU
            return torch.empty_like(first)
        if func is torch.Tensor.tolist:
            return torch.ones(first.shape).tolist()
        if func is torch.Tensor.to:
            return func(first, next(_dtypes(*args[1:], *given.values()), first.dtype))
        return func(*args, **given)


def _dtypes(*given: Any) -> Iterator[torch.dtype]:
    """Those that `to` was asked for, directly or by another tensor's."""
    for one in given:
        if isinstance(one, torch.dtype | torch.Tensor):
            yield one if isinstance(one, torch.dtype) else one.dtype


def _convolution(
    states: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *_: Any,
) -> torch.Tensor:
    steps = zip(states.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    sides = [(side + 2 * pad - apart * (kernel - 1) - 1) // step + 1 for side, pad, apart, kernel, step in steps]
    last = states.is_contiguous(memory_format=torch.channels_last) and not states.is_contiguous()
    kept = torch.channels_last if last else torch.contiguous_format
    return torch.empty(states.shape[0], weight.shape[0], *sides, dtype=states.dtype, device=META, memory_format=kept)


def _group_norm(states: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
    _, _, samples, _, _, groups, _ = args
    statistics = torch.empty(samples, groups, device=META)
    return torch.empty_like(states), statistics, torch.empty_like(statistics)


def _layer_norm(states: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    return torch.empty_like(states), torch.empty(states.shape[:-1], device=META), torch.empty(0, device=META)


def _embedding(table: torch.Tensor, ids: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty(*ids.shape, table.shape[1], dtype=table.dtype, device=META)


def _batch_norm(states: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    return torch.empty_like(states), torch.empty(0, device=META), torch.empty(0, device=META)


_SHAPES: dict[str, Callable[..., Any]] = {
    "convolution": _convolution,
    "convolution_overrideable": _convolution,
    "native_group_norm": _group_norm,
    "native_layer_norm": _layer_norm,
    "native_batch_norm": _batch_norm,
    "embedding": _embedding,
}
