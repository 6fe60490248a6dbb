"""Feature maps that are computed a band of rows at a time, when somebody asks for them.

A plane answers for any of its rows. A stored one has them; the others compute them from the rows of another
plane, a few more than asked for where a convolution looks above and below. So a whole map exists only where it
is stored, what is asked for twice is computed twice, and nothing has a seam: group norms take their statistics
from a first pass over the whole map.

The cut into bands is the same whether a map is stored or computed when asked for, and what is stored only sometimes
lies as it was computed: every plan has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from sdcli.devices.base import Device
from sdcli.units import MIB
from sdcli.uses import MapShape
from sdcli.weights.lent import weight_of
from sdcli.weights.packed import PackedConvolution, packing_of

BAND_BYTES, BAND_ROWS = 4 * MIB, 16
"""Bytes of a band's widest tensor, and rows that a band has at least: the rows around it are computed besides."""

PART_BYTES = 32 * MIB
"""Of a large map, that come and go together."""

AROUND_ROWS = 8
"""Rows above those that a residual block and a doubling ask for, and more."""

LARGEST_EXPONENT = 15
"""Of two, below which `Halved` keeps its numbers: FP16 ends at 65,504."""


class Plane(Protocol):
    """A feature map. `row_bytes` is what a row takes at the widest place on the way to it."""

    channels: int
    height: int
    width: int
    row_bytes: int

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """(1, channels, end - begin, width), for 0 <= begin < end <= height. Only `Sum` may write to it."""
        ...


class Stored:
    """A map that is there: (1, channels, height, width). It is cut as `row_bytes` says that it was when computed."""

    def __init__(self, values: torch.Tensor, row_bytes: int = 0) -> None:
        self.values = values
        _, self.channels, self.height, self.width = values.shape
        self.row_bytes = max(row_bytes, self.channels * self.width * values.element_size())

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """A view."""
        return self.values[:, :, begin:end]

    def put(self, begin: int, end: int, some: torch.Tensor) -> None:
        """Write rows."""
        self.values[:, :, begin:end] = some


class Halved(Stored):
    """A stored map of FP32 that lies in FP16: half the memory, 11 bits of each number.

    A power of two for each row keeps its largest number below 2^15, so that nothing overflows.
    """

    def __init__(self, values: torch.Tensor, row_bytes: int = 0) -> None:
        _, channels, height, width = values.shape
        super().__init__(values, max(row_bytes, channels * width * torch.float32.itemsize))
        self._scales = torch.ones(1, 1, height, 1, device=values.device)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """A copy in FP32."""
        return self.values[:, :, begin:end].float().mul_(self._scales[:, :, begin:end])

    def put(self, begin: int, end: int, some: torch.Tensor) -> None:
        """Round rows, and write them."""
        scales = _scales_of(some)
        self._scales[:, :, begin:end] = scales
        self.values[:, :, begin:end] = some / scales

    @staticmethod
    def rounded(some: torch.Tensor) -> torch.Tensor:
        """A copy of rows as they would come back."""
        scales = _scales_of(some)
        return (some / scales).to(torch.float16).float().mul_(scales)


def _scales_of(some: torch.Tensor) -> torch.Tensor:
    """The power of two for each row. A dry run has no numbers to look at."""
    if some.is_meta:
        return some.new_empty(1, 1, some.shape[2], 1)
    largest = torch.maximum(some.amax((0, 1, 3), keepdim=True), -some.amin((0, 1, 3), keepdim=True))
    return torch.exp2((largest.log2().ceil() - LARGEST_EXPONENT).clamp_(min=0))


class Parted:
    """A stored map that lies in parts, each there from when it is written to when it is used up.

    Of large maps: with the next map the one that it is computed from goes, part by part.
    """

    def __init__(self, plane: Plane, device: Device, dtype: torch.dtype, kind: type[Stored]) -> None:
        self.channels, self.height, self.width = plane.channels, plane.height, plane.width
        self._dtype, self._device, self._kind = torch.float16 if kind is Halved else dtype, device, kind
        own_bytes = self.channels * self.width * self._dtype.itemsize
        self.row_bytes = max(plane.row_bytes, self.channels * self.width * dtype.itemsize)
        each = band_rows(plane)
        self._rows = each * -(-PART_BYTES // (each * own_bytes))
        self._parts: list[Stored | None] = [None] * -(-self.height // self._rows)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """A view or a copy."""
        some = [part.rows(first, last) for part, _, (first, last) in self._under(begin, end)]
        return some[0] if len(some) == 1 else torch.cat(some, dim=2)

    def put(self, begin: int, end: int, some: torch.Tensor) -> None:
        """Write rows."""
        for part, given, within in self._under(begin, end):
            part.put(*within, some[:, :, given])

    def used_up(self, rows: int) -> None:
        """None of its first so many rows is asked for any more."""
        for index in range(min(rows // self._rows, len(self._parts))):
            self._parts[index] = None

    def _under(self, begin: int, end: int) -> Iterator[tuple[Stored, slice, tuple[int, int]]]:
        """The parts that have these rows: which of the rows that are, and which of the part's."""
        for index in range(begin // self._rows, -(-end // self._rows)):
            first = index * self._rows
            one, other = max(begin, first), min(end, first + self._rows)
            part = self._parts[index] or self._new(index)
            yield part, slice(one - begin, other - begin), (one - first, other - first)

    def _new(self, index: int) -> Stored:
        height = min(self._rows, self.height - index * self._rows)
        place, lies = self._device.torch_device, self._device.memory_format
        values = torch.empty(
            (1, self.channels, height, self.width), dtype=self._dtype, device=place, memory_format=lies
        )
        part = self._parts[index] = self._kind(values, self.row_bytes)
        return part


class Doubled:
    """Twice as high and wide, every value four times."""

    def __init__(self, source: Plane) -> None:
        self._source = source
        self.channels, self.height, self.width = source.channels, 2 * source.height, 2 * source.width
        self.row_bytes = 2 * source.row_bytes

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Nearest neighbours, as in diffusers' Upsample2D."""
        first = begin // 2
        some = F.interpolate(self._source.rows(first, -(-end // 2)), scale_factor=2.0, mode="nearest")
        return some[:, :, begin - 2 * first : end - 2 * first]


class Convolved:
    """A convolution with a square kernel. Its weight is cast when the plane is made, and goes with it.

    `after` is for diffusers' Downsample2D, which pads below and to the right only.
    """

    def __init__(self, source: Plane, layer: nn.Conv2d, device: Device, dtype: torch.dtype, after: int = 0) -> None:
        self._source, self._format, self._after = source, device.memory_format, after
        self._kernel, self._stride, self._above = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        lost = self._kernel - 2 * self._above - after
        self.channels = layer.out_channels
        self.height = (source.height - lost) // self._stride + 1
        self.width = (source.width - lost) // self._stride + 1
        self.row_bytes = max(source.row_bytes // self._stride, self.channels * self.width * dtype.itemsize)
        under = self._stride * (band_rows(self) - 1) + self._kernel
        self._run = _across(layer, device, dtype, (1, under, source.width + after))

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """From the rows under the kernel; beyond the map's edge there are zeros."""
        first = begin * self._stride - self._above
        last = (end - 1) * self._stride - self._above + self._kernel
        some = self._source.rows(max(0, first), min(self._source.height, last))
        above, below = max(0, -first), max(0, last - self._source.height)
        if above or below or self._after:
            some = F.pad(some, (0, self._after, above, below))
        return self._run(some.contiguous(memory_format=self._format))


def _across(
    layer: nn.Conv2d, device: Device, dtype: torch.dtype, sees: MapShape
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer without its padding above and below, for bands of the shape that it `sees`."""
    weight = weight_of(layer, device.torch_device, dtype)
    padding = (0, int(layer.padding[1]))
    if packing_of(layer, device, dtype) is PackedConvolution:
        packed = PackedConvolution.pack(layer, weight, sees, padding)
        return PackedConvolution(layer, lambda: packed, padding)
    weight = weight.contiguous(memory_format=device.memory_format)
    return lambda some: F.conv2d(some, weight, layer.bias, layer.stride, padding)


class Normed:
    """A group norm (Wu and He 2018, https://arxiv.org/abs/1803.08494) over the whole map, then an activation.

    Making it is one pass over the source. With the statistics known, it is a batch norm in inference.
    """

    def __init__(self, source: Plane, norm: nn.GroupNorm, activation: nn.Module, device: Device) -> None:
        self._source, self._activation, self._device, self._eps = source, activation, device, norm.eps
        self.channels, self.height, self.width = source.channels, source.height, source.width
        self.row_bytes = source.row_bytes
        self._weight, self._bias = norm.weight.float(), norm.bias.float()
        means, variances = self._statistics(norm.num_groups)
        each = self.channels // norm.num_groups
        self._mean = torch.tensor(means).repeat_interleave(each).to(self._weight)
        self._variance = torch.tensor(variances).repeat_interleave(each).to(self._weight)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Computed in FP32, rounded once before the activation and once after, as torch's own group norm is."""
        some = self._source.rows(begin, end)
        normed = F.batch_norm(
            _exact(some, self._device),
            self._mean,
            self._variance,
            self._weight,
            self._bias,
            training=False,
            eps=self._eps,
        ).to(some.dtype)
        if isinstance(self._activation, nn.SiLU):  # in its place: a band less
            return F.silu(normed, inplace=True)
        activated: torch.Tensor = self._activation(normed)
        return activated

    def _statistics(self, groups: int) -> tuple[list[float], list[float]]:
        """Mean and variance of each group: those of the bands, put together (Chan, Golub and LeVeque 1983)."""
        count, means, spreads = 0, [0.0] * groups, [0.0] * groups
        for begin, end in bands(self, self._device):
            some = _exact(self._source.rows(begin, end), self._device)
            numel = some.shape[2] * some.shape[3]
            _, mean, inverse = torch.native_group_norm(
                some, self._weight, self._bias, 1, self.channels, numel, groups, self._eps
            )
            share = numel / (count + numel)
            for group, (its, inverted) in enumerate(zip(mean[0].tolist(), inverse[0].tolist(), strict=True)):
                away = its - means[group]
                means[group] += share * away
                spreads[group] += share * (inverted**-2 - self._eps - spreads[group] + (1 - share) * away**2)
            count += numel
        return means, [max(0.0, spread) for spread in spreads]


def _exact(some: torch.Tensor, device: Device) -> torch.Tensor:
    """As a norm wants it: the CPU's kernels take half precision with FP32 statistics, others need FP32 throughout.

    And without gaps, which rows of a map that lies channel by channel have; the CPU takes channels last as well.
    """
    on_cpu = device.name == "cpu"
    if on_cpu and some.is_contiguous(memory_format=torch.channels_last):
        return some
    return (some if on_cpu else some.float()).contiguous()


class Sum:
    """One plane plus another; the first one's rows must be its own to give away."""

    def __init__(self, one: Plane, other: Plane) -> None:
        self._one, self._other = one, other
        self.channels, self.height, self.width = one.channels, one.height, one.width
        self.row_bytes = max(one.row_bytes, other.row_bytes)

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """In place in the first."""
        return self._one.rows(begin, end).add_(self._other.rows(begin, end))


def band_rows(plane: Plane) -> int:
    """Rows of a band."""
    return max(BAND_ROWS, BAND_BYTES // plane.row_bytes)


def bands(plane: Plane, device: Device) -> Iterator[tuple[int, int]]:
    """The rows of a plane, a band at a time: begin and end. What a band took is given back before the next one."""
    rows = band_rows(plane)
    for begin in range(0, plane.height, rows):
        yield begin, min(plane.height, begin + rows)
        device.between_blocks()


def store(plane: Plane, device: Device, dtype: torch.dtype, kind: type[Stored] = Stored) -> Stored:
    """Compute all of a plane, on the device."""
    shape = (1, plane.channels, plane.height, plane.width)
    lies_as = torch.float16 if kind is Halved else dtype
    values = torch.empty(shape, dtype=lies_as, device=device.torch_device, memory_format=device.memory_format)
    stored = kind(values, plane.row_bytes)
    for begin, end in bands(plane, device):
        stored.put(begin, end, plane.rows(begin, end))
    return stored


def part(plane: Plane, device: Device, dtype: torch.dtype, kind: type[Stored], spent: Parted | None = None) -> Parted:
    """Compute all of a plane, in parts. One that it is computed from, and nothing else is, may be `spent` on it."""
    parted = Parted(plane, device, dtype, kind)
    for begin, end in bands(plane, device):
        parted.put(begin, end, plane.rows(begin, end))
        if spent is not None:
            spent.used_up(end * spent.height // plane.height - AROUND_ROWS)
    return parted


def overwrite(stored: Parted, plane: Plane, device: Device) -> Parted:
    """Compute all of a plane in the place of one that it is computed from.

    A row may need the two above it as they were (a residual block has two convolutions), so a band is written when
    the next one is computed; BAND_ROWS is more than two.
    """
    waiting: tuple[int, int, torch.Tensor] | None = None
    for begin, end in bands(plane, device):
        some = plane.rows(begin, end)
        if waiting is not None:
            stored.put(*waiting)
        waiting = begin, end, some
    if waiting is not None:
        stored.put(*waiting)
    return stored
