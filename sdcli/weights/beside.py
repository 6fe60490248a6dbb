"""LoRA and its kin beside a layer: what they add to its output, where its weight is used as it lies.

A LoRA is s (x A) B, its two matrices read and cast for as long as the layer runs. Samples go one at a time and tokens
some at a time, so that every plan has the same bits, and what comes between takes little memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sdcli.weights.adapters import Changes, Loaded, input_norms, output_norms
from sdcli.weights.source import Stored
from sdcli.weights.terms import POINTWISE, Geometry, Part, Term, term_of

Run = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor | None], torch.Tensor]
"""A layer, of states, its bias and a residual."""

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class _Gain:
    """What an adapter with magnitudes is multiplied by, for each input or for each output: m / |W + D|."""

    inputs: torch.Tensor | None = None
    outputs: torch.Tensor | None = None


class Beside:
    """What the adapters of one layer's weight do to its output. `layer` is an nn.Linear or an nn.Conv2d."""

    def __init__(self, layer: nn.Module, changes: Changes, base: Stored | None, device: torch.device) -> None:
        """`base`, the weight itself, is read where there are magnitudes; in a dry run there is none."""
        self._layer: Any = layer
        self._changes, self._device = changes, device
        self._shape = layer.get_parameter("weight").shape if base is None else base.tensor.shape
        self._gains = [self._gain(index, base) for index in range(len(changes.adapters))]
        weights = [adapter.weight for adapter in changes.adapters]
        self._before = _sum_of([gain.inputs for gain in self._gains], weights)
        self._after = _sum_of([gain.outputs for gain in self._gains], weights)

    def _loaded(self, index: int) -> Loaded:
        return self._changes.loaded(self._changes.adapters[index], self._device, self._shape)

    def _gain(self, index: int, base: Stored | None) -> _Gain:
        for role, norms_of in (("input_magnitude", input_norms), ("magnitude", output_norms)):
            if role in self._changes.adapters[index].tensors:
                loaded = self._loaded(index)
                magnitude = loaded.tensors[role].flatten()
                gain = magnitude if base is None else magnitude / norms_of(base, loaded, self._device)
                return _Gain(inputs=gain) if role == "input_magnitude" else _Gain(outputs=gain)
        return _Gain()

    def __call__(
        self,
        states: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        run: Run,
        rows: slice = ALL,
    ) -> torch.Tensor:
        """The changed layer's output, or those of its outputs that `rows` are."""
        if self._before is None and self._after is None:
            return self.add(states, run(states, bias, residual), rows)
        output = self.scaled(run(self.given(states), None, None), rows)
        self.add(states, output, rows)
        if bias is not None:
            output.add_(self._aligned(bias))
        return output if residual is None else output.add_(residual)

    def given(self, states: torch.Tensor) -> torch.Tensor:
        """What the layer itself is given: where magnitudes are of inputs, a copy."""
        return states if self._before is None else states * self._aligned(self._before.to(states))

    def scaled(self, output: torch.Tensor, rows: slice = ALL) -> torch.Tensor:
        """The layer's own output where magnitudes are of outputs, in its place."""
        return output if self._after is None else output.mul_(self._aligned(self._after[rows].to(output)))

    def add(self, states: torch.Tensor, output: torch.Tensor, rows: slice = ALL) -> torch.Tensor:
        """Add what the adapters make of `states` to the output, in its place."""
        if self._is_convolution:
            output = output.contiguous(memory_format=torch.channels_last)
        for index, gain in enumerate(self._gains):
            term = self._term(index, rows)
            for some, into in self._samples(states, output):
                term(some if gain.inputs is None else some * self._aligned(gain.inputs.to(some)), into)
        return output

    def _samples(self, states: torch.Tensor, output: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One at a time: (in, h, w) of a convolution, else (tokens, in)."""
        if self._is_convolution:
            yield from zip(states.unbind(), output.unbind(), strict=True)
        elif states.dim() > 2:
            for some, into in zip(states.unbind(), output.unbind(), strict=True):
                yield some.flatten(0, -2), into.flatten(0, -2)
        else:
            yield states, output

    def _term(self, index: int, rows: slice) -> Term:
        first, last, _ = rows.indices(self._shape[0])
        gain = self._gains[index].outputs
        some = None if gain is None else gain[first:last, None]
        part = Part(self._loaded(index), first, last, some, self._geometry)
        return term_of(part, self._shape[0], self._shape[1:].numel())

    def _aligned(self, each: torch.Tensor) -> torch.Tensor:
        """A number for each channel, where a layer of this kind has its channels."""
        return each[:, None, None] if self._is_convolution else each

    @property
    def _is_convolution(self) -> bool:
        return len(self._shape) == 4

    @property
    def _geometry(self) -> Geometry | None:
        """Of a convolution; None for a matrix, and for what is one."""
        if not self._is_convolution:
            return None
        layer = self._layer
        geometry = Geometry(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        return None if geometry == POINTWISE else geometry


def _sum_of(gains: list[torch.Tensor | None], weights: list[float]) -> torch.Tensor | None:
    """1 + Σ s (gain - 1): what the layer's own inputs or outputs are multiplied by; None for all by 1."""
    changes = [weight * (gain - 1) for gain, weight in zip(gains, weights, strict=True) if gain is not None]
    return 1 + torch.stack(changes).sum(0) if changes else None
