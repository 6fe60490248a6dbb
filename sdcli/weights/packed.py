"""Layers whose weights lie in the CPU library's own layout, made once.

oneDNN computes with blocked weights and, given plain ones, lays them out again in every call: at the small sides of
the UNet that takes eight times longer than the convolution itself, and needs memory the size of the weight. The
operators are those that torch's own compiler emits for a CPU. They add a residual, or multiply by a gate, before they
round to the arithmetic's type: one pass over the output instead of two.

What a packed weight is made of, and how it may lie anywhere: weights/opaque.py.
"""

from __future__ import annotations

import functools
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from torch import nn

from sdcli.devices.base import Device
from sdcli.machine import ANY_SIZE, cpu_gains_by_winograd
from sdcli.uses import MapShape
from sdcli.weights import winograd
from sdcli.weights.beside import Beside
from sdcli.weights.opaque import description, opaque, raw_bytes, seen_as_packed

SOME_MAP: MapShape = ANY_SIZE
"""For layers that see none, and where it does not matter."""

FEW_PLACES = 80
"""Up to so many rows a matrix product goes as a convolution over them. It takes hardly longer, and the library keeps
0.1 MiB of code and tables for it instead of 0.8: the time's, the prompt's and the smallest map's had come to 9 MiB."""


class Packed(ABC):
    """A layer's forward. `weights` gives its packed weights whenever it runs: kept ones, or made for the occasion."""

    def __init__(self, layer: nn.Module, weights: Callable[[], list[torch.Tensor]]) -> None:
        self._layer: Any = layer
        self._weights = weights
        self.beside: Beside | None = None
        """What is added to the layer's output, since its weight is used as it lies."""

    @staticmethod
    @abstractmethod
    def pack(layer: Any, plain: torch.Tensor, sees: MapShape = SOME_MAP) -> list[torch.Tensor]:
        """Packed copies of a contiguous weight in the layer's shape, laid out for the map that the layer will see."""

    @abstractmethod
    def __call__(self, states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The layer's output, plus `residual`."""


class PackedConvolution(Packed):
    """Of nn.Conv2d. `padding` is in place of the layer's own."""

    def __init__(
        self,
        layer: nn.Conv2d,
        weights: Callable[[], list[torch.Tensor]],
        padding: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(layer, weights)
        self._geometry = _geometry(layer, padding)
        self._padding = self._geometry[0][0], self._geometry[0][1]

    @staticmethod
    def pack(
        layer: Any, plain: torch.Tensor, sees: MapShape = SOME_MAP, padding: tuple[int, int] | None = None
    ) -> list[torch.Tensor]:
        """One. Other padding is for bands of a map: Winograd's tiles would begin elsewhere, and round otherwise."""
        batch, height, width = sees
        geometry = _geometry(layer, padding)
        if padding is None and _goes_by_winograd(layer, geometry, plain.dtype, height * width):
            return [winograd.kernel_for(plain).to_mkldnn()]
        return [_laid_out_kernel(plain, geometry, [batch, layer.in_channels, height, width])]

    def __call__(
        self, states: torch.Tensor, residual: torch.Tensor | None = None, shift: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, in, h, w) → (batch, out, h, w). `shift`, (out,), is added to every pixel, as the bias is."""
        (weight,) = self._weights()
        bias = self._layer.bias if shift is None else self._layer.bias + shift
        run = functools.partial(self._run, weight)
        return run(states, bias, residual) if self.beside is None else self.beside(states, bias, residual, run)

    def _run(
        self, weight: torch.Tensor, states: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        run, geometry = torch.ops.mkldnn._convolution_pointwise, self._geometry
        output: torch.Tensor
        if weight.ndim == 2:
            plain = torch.frombuffer(raw_bytes(weight), dtype=states.dtype).view(weight.shape)
            output = winograd.convolve(states, plain, bias, self._padding, residual)
        elif residual is None:
            output = run(states, weight, bias, *geometry, "none", [], "")
        else:
            output = run.binary(states, residual, weight, bias, *geometry, "add", 1.0, None, [], None)
        return output


class PackedLinear(Packed):
    """Of nn.Linear."""

    @staticmethod
    def pack(layer: Any, plain: torch.Tensor, sees: MapShape = SOME_MAP) -> list[torch.Tensor]:
        """One."""
        return [_laid_out(plain, sees)]

    def __call__(self, states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) → (…, out)."""
        (weight,) = self._weights()
        run, bias = functools.partial(_sum, weight), self._layer.bias
        return run(states, bias, residual) if self.beside is None else self.beside(states, bias, residual, run)


class PackedGate(Packed):
    """Of GEGLU: a * gelu(b) with (a, b) = x W (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""

    @staticmethod
    def pack(layer: Any, plain: torch.Tensor, sees: MapShape = SOME_MAP) -> list[torch.Tensor]:
        """Two: of a and of b."""
        return [_laid_out(half, sees) for half in plain.chunk(2)]

    def __call__(self, states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """(…, in) → (…, out)."""
        value, gate = self._weights()
        value_bias, gate_bias = self._layer.proj.bias.chunk(2)
        if self.beside is not None:
            halves = slice(0, len(value_bias)), slice(len(value_bias), None)
            gated = self.beside(states, gate_bias, None, functools.partial(_sum, gate), halves[1])
            gated = torch.ops.aten.gelu_(gated)
            return gated.mul_(self.beside(states, value_bias, None, functools.partial(_sum, value), halves[0]))
        gated = _product(states, gate, gate_bias, "gelu")
        return _product_with(gated, "mul", states, value, value_bias)


Geometry = tuple[list[int], list[int], list[int], int]
"""A convolution's padding, stride, dilation and groups."""

_PLAIN_STEPS = ([1, 1], [1, 1], 1)
"""Stride, dilation and groups of a kernel that Winograd's way is for."""

_POINTWISE: Geometry = ([0, 0], [1, 1], [1, 1], 1)
"""That make it a matrix product."""


def _goes_by_winograd(layer: nn.Conv2d, geometry: Geometry, dtype: torch.dtype, places: int) -> bool:
    return (
        dtype is torch.float32
        and cpu_gains_by_winograd()
        and layer.kernel_size == (3, 3)
        and geometry[1:] == _PLAIN_STEPS
        and winograd.pays(layer.in_channels, layer.out_channels, places)
    )


def _laid_out_kernel(plain: torch.Tensor, geometry: Geometry, sees: list[int]) -> torch.Tensor:
    """A convolution's weight, packed for maps of the shape `sees`.

    torch's operator for plain weights copies them first, 112 MiB of the largest. One that is seen as the library's
    already, in the plain layout, is read where it lies.
    """
    packed: torch.Tensor
    if can_map():
        packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(seen_as_packed(plain), *geometry, sees)
    else:
        packed = torch.ops.mkldnn._reorder_convolution_weight(plain, *geometry, sees)
    return packed


def _laid_out(matrix: torch.Tensor, sees: MapShape) -> torch.Tensor:
    """(out, in), packed for products; for few places as the kernel of a convolution, (out, in, 1, 1)."""
    _, height, width = sees
    packed: torch.Tensor
    if height * width > FEW_PLACES:
        packed = torch.ops.mkldnn._reorder_linear_weight(matrix)
    else:
        row = [1, matrix.shape[1], 1, height * width]
        packed = _laid_out_kernel(matrix[:, :, None, None], _POINTWISE, row)
    return packed


def _sum(
    weight: torch.Tensor, states: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None
) -> torch.Tensor:
    """states W + bias + residual."""
    if residual is None:
        return _product(states, weight, bias)
    return _product_with(residual, "add", states, weight, bias)


def _product(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """activation(states W + bias): (…, in) → (…, out)."""
    exactly = "none" if activation == "gelu" else ""  # not by its approximation
    output: torch.Tensor
    if activation == "gelu" and states.dtype is torch.float32:  # the library's takes half as long as the product
        return torch.ops.aten.gelu_(_product(states, weight, bias))
    if weight.ndim == 2:
        output = torch.ops.mkldnn._linear_pointwise(states, weight, bias, activation, [], exactly)
        return output
    run = torch.ops.mkldnn._convolution_pointwise
    return _from_row(run(_as_row(states), weight, bias, *_POINTWISE, activation, [], exactly), states)


def _product_with(
    other: torch.Tensor, how: str, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(states W + bias) plus or times `other`, (…, out), before it is rounded."""
    output: torch.Tensor
    if weight.ndim == 2:
        output = torch.ops.mkldnn._linear_pointwise.binary(states, other, weight, bias, how)
        return output
    run = torch.ops.mkldnn._convolution_pointwise.binary
    row = run(_as_row(states), _as_row(other), weight, bias, *_POINTWISE, how, 1.0, None, [], None)
    return _from_row(row, states)


def _as_row(states: torch.Tensor) -> torch.Tensor:
    """(…, channels) → (1, channels, 1, places), a map of one row in channels last: a view."""
    return states.reshape(1, 1, -1, states.shape[-1]).permute(0, 3, 1, 2)


def _from_row(row: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(1, channels, 1, places) → (…, channels), a view."""
    return row.permute(0, 2, 3, 1).reshape(*like.shape[:-1], row.shape[1])


def plus(layer: nn.Module, states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """layer(states) + residual, in one pass if the layer is packed."""
    forward = layer.__dict__.get("forward")
    output: torch.Tensor = forward(states, residual) if isinstance(forward, Packed) else layer(states).add_(residual)
    return output


def shifted(layer: nn.Conv2d, states: torch.Tensor, shifts: Sequence[torch.Tensor]) -> torch.Tensor:
    """layer(states) + shift, (out,) for every pixel, in one pass if the layer is packed: one for all samples or each.

    Samples with shifts of their own go one after another there, so that each has the bits that it has alone.
    """
    forward = layer.__dict__.get("forward")
    packed = forward if isinstance(forward, PackedConvolution) and layer.bias is not None else None
    if len(shifts) > 1 and (packed is not None or states.is_meta):  # a dry run has what the largest way takes
        one = shifted(layer, states[:1], shifts[:1])
        every = torch.empty_like(one.expand(len(shifts), -1, -1, -1), memory_format=_format_of(one))
        every[:1] = one
        for number in range(1, len(shifts)):
            del one
            some = slice(number, number + 1)
            one = shifted(layer, states[some], shifts[some])
            every[some] = one
        return every
    if packed is not None:
        return packed(states, shift=shifts[0])
    output: torch.Tensor = layer(states).add_(torch.stack([*shifts])[:, :, None, None])
    return output


def _format_of(states: torch.Tensor) -> torch.memory_format:
    last = states.is_contiguous(memory_format=torch.channels_last) and not states.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def packing_of(layer: nn.Module, device: Device, dtype: torch.dtype) -> type[Packed] | None:
    """How this layer is packed on this device in this type; None if it gains nothing, or if torch cannot do it.

    A GEGLU is packed as a whole: the linear layer inside it is its weight and bias only.
    """
    if device.torch_device.type != "cpu" or not _has_operators() or not multiplies(dtype):
        return None
    if isinstance(layer, GEGLU):
        return PackedGate
    if type(layer) is nn.Linear:
        return PackedLinear
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return PackedConvolution
    return None


def _geometry(layer: nn.Conv2d, padding: tuple[int, int] | None) -> Geometry:
    sides = [int(side) for side in padding or layer.padding]
    return sides, list(layer.stride), list(layer.dilation), layer.groups


def _has_operators() -> bool:
    operators = ("_reorder_convolution_weight", "_convolution_pointwise", "_reorder_linear_weight", "_linear_pointwise")
    on_x86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere nobody has measured what it gains
    return on_x86 and torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, op) for op in operators)


def multiplies(dtype: torch.dtype) -> bool:
    """Whether the library has kernels of this type for this processor: machine.cpu_packs_weights by its own account."""
    asks = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return dtype is torch.float32 or (dtype in asks and bool(getattr(torch.ops.mkldnn, asks[dtype])()))


@functools.cache
def can_map() -> bool:
    """Whether packed weights may lie in a mapped file here: tried with a small one, in the type that all have."""
    if not (sys.platform == "linux" and _has_operators()):
        return False
    try:
        layer = nn.Conv2d(16, 16, 3, padding=1)
        states = torch.ones(1, 16, 8, 8)
        with torch.inference_mode():
            plain, map_seen = layer.weight.detach(), [1, *states.shape[1:]]
            kept = [torch.ops.mkldnn._reorder_convolution_weight(plain, *_geometry(layer, None), map_seen)]
            address = torch.ops.mkldnn.data_ptr(kept[0])
            again = [opaque(address, tuple(layer.weight.shape), torch.float32, description(kept[0]))]
            run = PackedConvolution(layer, lambda: again)
            return torch.equal(run(states), PackedConvolution(layer, lambda: kept)(states))
    except (RuntimeError, AttributeError, OSError, TypeError):  # another version of torch
        return False
