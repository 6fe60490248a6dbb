"""Convolutions of 3 x 3 in FP32 with a quarter of the multiplications: F(4 x 4, 3 x 3) of Lavin and Gray 2016
(https://arxiv.org/abs/1509.09308), after Winograd 1980.

A tile of 6 x 6 numbers gives 4 x 4 of the output. Tile and kernel become 36 numbers each, and what was a convolution
becomes 36 products of matrices, places x channels by channels x outputs. Bounded: so many tiles and so many channels at
a time, in 11 to 20 MiB, whatever the size of the map.

All three changes are products with constant matrices, which is how they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

TILE, SIDE = 4, 6
"""Sides of a tile of the output, and of what it is computed from."""

CHANNELS = 64
"""Of the input, at a time."""

TILES, FEWEST_TILES = 96, 64
"""At a time, and in a map at least: with fewer the change of the kernel costs more than it saves."""

WIDEST = 640
"""Output channels, above which the change of the kernel takes too much memory."""

_NUMBERS = SIDE * SIDE

Rows = Sequence[Sequence[float]]

_OF_TILE: Rows = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
_OF_KERNEL: Rows = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
_OF_SUMS: Rows = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def _both_ways(rows: Rows) -> torch.Tensor:
    """The matrix that changes rows and columns of a flattened square at once."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


CHANGE_TILE, CHANGE_KERNEL, CHANGE_SUMS = _both_ways(_OF_TILE), _both_ways(_OF_KERNEL), _both_ways(_OF_SUMS)
"""(36, 36), (36, 9) and (16, 36): B^T x B^T, G x G and A^T x A^T in the paper's names."""


def pays(channels: int, out: int, places: int) -> bool:
    """Whether a convolution over a map of so many places is faster this way."""
    return channels % CHANNELS == 0 and out <= WIDEST and places // TILE**2 >= FEWEST_TILES


def kernel_for(plain: torch.Tensor) -> torch.Tensor:
    """(out, in, 3, 3) as `convolve` takes it: a row for each 64 input channels, of 9 x 64 x out."""
    out, channels, _, _ = plain.shape
    grouped = plain.view(out, channels // CHANNELS, CHANNELS, 9).permute(1, 3, 2, 0)
    return grouped.reshape(channels // CHANNELS, 9 * CHANNELS * out)


def convolve(
    states: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    padding: tuple[int, int],
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """(batch, in, h, w) → (batch, out, h', w') in channels last, plus `residual`, of the output's shape."""
    batch, channels, height, width = states.shape
    out = kernel.numel() // (9 * channels)
    height, width = height + 2 * padding[0] - 2, width + 2 * padding[1] - 2
    output = torch.empty(batch, height, width, out)
    across = -(-width // TILE)
    down = max(1, TILES // across)
    for image in range(batch):
        for first in range(0, height, TILE * down):
            last = min(first + TILE * down, height)
            _band(states[image].permute(1, 2, 0), kernel, padding, first, output[image, first:last])
    if bias is not None:
        output += bias
    if residual is not None:
        output += residual.permute(0, 2, 3, 1)
    return output.permute(0, 3, 1, 2)


def _band(
    states: torch.Tensor, kernel: torch.Tensor, padding: tuple[int, int], first: int, output: torch.Tensor
) -> None:
    """Rows of the output from `first` on, (rows, w', out), of (h, w, in)."""
    rows, width, out = output.shape
    down, across = -(-rows // TILE), -(-width // TILE)
    tiles = down * across
    sums, square = torch.empty(_NUMBERS, tiles, out), torch.empty(_NUMBERS, tiles * CHANNELS)
    changed, changed_kernel = torch.empty_like(square), torch.empty(_NUMBERS, CHANNELS * out)
    for group, some in enumerate(kernel):
        channels = slice(group * CHANNELS, (group + 1) * CHANNELS)
        around = _with_edges(states[:, :, channels], padding, first, TILE * down + 2, TILE * across + 2)
        torch.mm(CHANGE_TILE, _squares(around, down, across, square), out=changed)
        torch.mm(CHANGE_KERNEL, some.view(9, -1), out=changed_kernel)
        pair = changed.view(_NUMBERS, tiles, CHANNELS), changed_kernel.view(_NUMBERS, CHANNELS, out)
        if group == 0:
            torch.bmm(*pair, out=sums)
        else:
            sums.baddbmm_(*pair)
    finished = torch.mm(CHANGE_SUMS, sums.view(_NUMBERS, -1)).view(TILE, TILE, down, across, out)
    finished = finished.permute(2, 0, 3, 1, 4)
    if (rows, width) == (TILE * down, TILE * across):
        output.view(finished.shape).copy_(finished)
    else:
        output.copy_(finished.reshape(TILE * down, TILE * across, out)[:rows, :width])


def _with_edges(states: torch.Tensor, padding: tuple[int, int], first: int, rows: int, columns: int) -> torch.Tensor:
    """(rows, columns, channels) of the padded map, `first` of its rows on: zeros beyond its edges."""
    width = states.shape[1]
    begin, left = first - padding[0], padding[1]
    inside = states[max(0, begin) : begin + rows]
    above = max(0, -begin)
    return F.pad(inside, (0, 0, left, columns - left - width, above, rows - above - len(inside)))


def _squares(around: torch.Tensor, down: int, across: int, into: torch.Tensor) -> torch.Tensor:
    """(36, tiles x channels): the number at each place of each tile's 6 x 6, tiles overlapping by two."""
    row, column, _ = around.stride()
    sides = (SIDE, SIDE, down, across, around.shape[2])
    squares = around.as_strided(sides, (row, column, TILE * row, TILE * column, 1))
    into.view(sides).copy_(squares)
    return into
