"""A gated feed-forward, SwiGLU: (silu(x G) ∘ x U) D (Shazeer 2020, https://arxiv.org/abs/2002.05202).

Its hidden states, three times as wide as the tokens, exist for some tokens and some of their numbers at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sdcli.weights.sliced import add_product, columns_at_a_time, product, slices_of


@dataclass(frozen=True, slots=True)
class Gated:
    """The weights of one: rows of two layers that may be the same, and columns of a third."""

    gate: nn.Module
    up: nn.Module
    down: nn.Module
    width: int
    """Of the hidden states."""
    gate_row: int = 0
    up_row: int = 0
    down_column: int = 0
    """Where each begins in its layer."""

    def __call__(self, states: torch.Tensor, beside: torch.Tensor | None = None) -> torch.Tensor:
        """The feed-forward of `states`, (tokens, in) → (tokens, out).

        What lies `beside` the hidden states, for the columns before theirs, is multiplied along. Where the last weight
        is used as it lies, that is one product: the libraries would copy some columns of it before they use them.
        """
        if slices_of(self.down).lies:
            hidden = self._hidden(states, 0, self.width)
            return product(hidden if beside is None else torch.cat([beside, hidden], dim=1), self.down)
        output = states.new_zeros(len(states), slices_of(self.down).shape[0])
        if beside is not None:
            add_product(output, beside, self.down, slice(0, self.down_column))
        size = columns_at_a_time(self.down, states.dtype)
        for begin in range(0, self.width, size):
            end = min(begin + size, self.width)
            add_product(output, self._hidden(states, begin, end), self.down, _from(self.down_column, begin, end))
        return output

    def _hidden(self, states: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        hidden = F.silu(product(states, self.gate, _from(self.gate_row, begin, end)), inplace=True)
        return hidden.mul_(product(states, self.up, _from(self.up_row, begin, end)))


def _from(first: int, begin: int, end: int) -> slice:
    return slice(first + begin, first + end)
