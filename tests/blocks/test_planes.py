"""Maps by bands: the same values as at once, whatever the cut."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from sdcli.blocks import planes
from sdcli.blocks.passing import Remembered, Rounded
from sdcli.blocks.planes import (
    Convolved,
    Doubled,
    Halved,
    Normed,
    Parted,
    Plane,
    Stored,
    Sum,
    bands,
    overwrite,
    part,
    store,
)
from sdcli.devices.cpu import CpuDevice
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder
from sdcli.models.opened import open_model
from tests.networks import DTYPES, borrowing

CPU = CpuDevice()
Layer = TypeVar("Layer", bound=nn.Module)


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands of five rows, so that small maps have several and the last one is short."""
    monkeypatch.setattr(planes, "BAND_BYTES", 1)
    monkeypatch.setattr(planes, "BAND_ROWS", 5)
    monkeypatch.setattr(planes, "PART_BYTES", 1)
    monkeypatch.setattr(planes, "AROUND_ROWS", 3)


def random_map(channels: int = 8, height: int = 23, width: int = 14) -> torch.Tensor:
    return torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(height))


def lent(layer: Layer) -> Layer:
    """The layer as lend_weights leaves it: with plain tensors, on which nothing is recorded."""
    return layer.requires_grad_(False)


def assert_same(plane: Plane, whole: torch.Tensor) -> None:
    assert (plane.channels, plane.height, plane.width) == whole.shape[1:]
    assert torch.allclose(store(plane, CPU, torch.float32).values, whole, atol=1e-5)
    for begin, end in ((0, 1), (whole.shape[2] - 1, whole.shape[2]), (1, 4), (0, whole.shape[2])):
        assert torch.allclose(plane.rows(begin, end), whole[:, :, begin:end], atol=1e-5), (begin, end)


def test_bands_cover_every_row_once() -> None:
    cut = list(bands(Stored(random_map(height=23)), CPU))
    assert cut == [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (1, 1, 0), (3, 2, 1), (5, 1, 2)])
def test_a_convolution(kernel: int, stride: int, padding: int) -> None:
    layer = lent(nn.Conv2d(8, 6, kernel, stride, padding))
    values = random_map()
    assert_same(Convolved(Stored(values), layer, CPU, torch.float32), layer(values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_convolution_is_the_plain_one(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    layer, values = lent(nn.Conv2d(8, 6, 3, 1, 1)).to(dtype), random_map().to(dtype)
    packed = store(Convolved(Stored(values), layer, CPU, dtype), CPU, dtype)
    monkeypatch.setattr(planes, "packing_of", lambda *_: None)
    plain = store(Convolved(Stored(values), layer, CPU, dtype), CPU, dtype)
    torch.testing.assert_close(plain.values, packed.values)


@pytest.mark.parametrize("height", [22, 23])
def test_a_convolution_that_halves_pads_below_and_to_the_right_only(height: int) -> None:
    layer = lent(nn.Conv2d(8, 6, 3, 2, 0))
    values = random_map(height=height)
    assert_same(Convolved(Stored(values), layer, CPU, torch.float32, after=1), layer(F.pad(values, (0, 1, 0, 1))))


def test_doubling() -> None:
    values = random_map()
    assert_same(Doubled(Stored(values)), F.interpolate(values, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_norm_has_the_statistics_of_the_whole_map(shift: float) -> None:
    norm, values = lent(nn.GroupNorm(4, 8)), random_map() + shift * torch.linspace(0, 1, 23)[:, None]
    norm.weight.uniform_(0.5, 2)
    norm.bias.uniform_(-1, 1)
    whole = F.silu(F.group_norm(values.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)).float()
    plane = Normed(Stored(values), norm, nn.SiLU(), CPU)
    assert torch.allclose(store(plane, CPU, torch.float32).values, whole, atol=2e-5)
    tiled = F.silu(torch.cat([norm(part) for part in values.split(5, dim=2)], 2))
    assert (tiled - whole).abs().max() > 0.05, "norms of the bands' own would be another picture"


def test_a_sum_and_what_is_remembered() -> None:
    one, other = random_map(), random_map(height=23) * 2
    layer = lent(nn.Conv2d(8, 8, 1))
    assert_same(Sum(Convolved(Stored(one), layer, CPU, torch.float32), Stored(other)), layer(one) + other)
    asked: list[tuple[int, int]] = []

    class Noted(Stored):
        def rows(self, begin: int, end: int) -> torch.Tensor:
            asked.append((begin, end))
            return super().rows(begin, end)

    plane = Remembered(Noted(one))
    assert torch.equal(plane.rows(3, 9), one[:, :, 3:9]) and torch.equal(plane.rows(4, 9), one[:, :, 4:9])
    assert torch.equal(plane.rows(4, 10), one[:, :, 4:10]) and asked == [(3, 9), (9, 10)], "no row twice in a pass"
    assert torch.equal(plane.rows(15, 20), one[:, :, 15:20]) and torch.equal(plane.rows(0, 3), one[:, :, 0:3])
    assert asked[2:] == [(15, 20), (0, 3)]


@pytest.mark.parametrize("kind", [Stored, Halved])
def test_what_is_never_stored_has_the_numbers_that_it_would_have(kind: type[Stored]) -> None:
    values = random_map() * torch.logspace(-6, 6, 23)[:, None]
    plane, stored = Rounded(Stored(values), kind, torch.float32), part(Stored(values), CPU, torch.float32, kind)
    assert plane.row_bytes == stored.row_bytes
    for begin, end in ((0, 23), (4, 9)):
        assert torch.equal(plane.rows(begin, end), stored.rows(begin, end))


def test_a_map_may_be_overwritten_by_what_is_computed_from_it() -> None:
    first, second = lent(nn.Conv2d(8, 8, 3, 1, 1)), lent(nn.Conv2d(8, 8, 3, 1, 1))
    values = random_map()
    whole = second(first(values)) + values
    stored = part(Stored(values), CPU, torch.float32, Stored)
    plane = Convolved(Convolved(stored, first, CPU, torch.float32), second, CPU, torch.float32)
    assert overwrite(stored, Sum(plane, stored), CPU) is stored
    assert torch.allclose(stored.rows(0, 23), whole, atol=1e-5)


def test_a_map_in_parts_is_the_same_and_goes_as_it_is_used_up() -> None:
    values = random_map(height=23)
    parted = part(Stored(values), CPU, torch.float32, Stored)
    assert_same(parted, values)
    layer = lent(nn.Conv2d(8, 6, 3, 1, 1))
    doubled = F.interpolate(values, scale_factor=2.0, mode="nearest")
    spent = part(Convolved(Doubled(parted), layer, CPU, torch.float32), CPU, torch.float32, Stored, parted)
    assert torch.allclose(spent.rows(0, 46), layer(doubled), atol=1e-5)
    parts = [one is not None for one in parted._parts]
    assert parts == [False, False, False, False, True], "its first 23 - 3 rows"


def test_a_halved_map_takes_half_the_memory_and_no_number_is_too_large_for_it() -> None:
    values = random_map(height=23).contiguous(memory_format=torch.channels_last)
    values[:, :, 7] *= 1e9
    values[:, :, 11] = 0
    halved = store(Stored(values), CPU, torch.float32, Halved)
    assert halved.values.nbytes == values.nbytes // 2 and halved.row_bytes == Stored(values).row_bytes
    assert torch.allclose(halved.rows(0, 23), values, rtol=2**-11, atol=2**-24)

    layer = lent(nn.Conv2d(8, 8, 3, 1, 1))
    whole = layer(values) + values
    parted = part(Stored(values), CPU, torch.float32, Halved)
    assert torch.equal(parted.rows(0, 23), halved.rows(0, 23)) and isinstance(parted, Parted)
    overwrite(parted, Sum(Convolved(parted, layer, CPU, torch.float32), parted), CPU)
    assert torch.allclose(parted.rows(13, 23), whole[:, :, 13:23], atol=5e-3)  # away from the huge ones
    halved.put(0, 1, torch.full_like(values[:, :, :1], torch.inf))
    assert not halved.rows(0, 1).isfinite().any()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (16, 9), (9, 24)])
@pytest.mark.parametrize("way", AUTOENCODER_WAYS)
def test_the_autoencoder_is_diffusers_own_without_seams(tiny: Path, way: str, size: tuple[int, int]) -> None:
    vae = AutoencoderKL.from_pretrained(tiny / "vae", torch_dtype=torch.float32).eval()
    component = open_model("m", tiny).parts["vae"]
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(1, 3, 8 * size[0], 8 * size[1], generator=torch.Generator().manual_seed(2)) * 2 - 1
    scaled = latents / vae.config["scaling_factor"]
    with borrow_decoder(component, borrowing(component, way=way)) as decode:
        assert (decode(latents) - vae.decode(scaled).sample).abs().max() <= 1 / 255
    posterior = vae.encode(pixels).latent_dist
    with borrow_encoder(component, borrowing(component, way=way)) as encode:
        mean, deviation = encode(pixels)
    assert torch.allclose(mean, posterior.mean, atol=1e-3)  # the encoder's maps lie in FP16: 5.3e-4 with Arm's kernels
    assert torch.allclose(deviation, posterior.std, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_that_are_kept_or_computed_again_give_the_same_bits(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(planes, "BAND_BYTES", 3 * 16 * 64 * dtype.itemsize)  # more rows of some maps than of others
    monkeypatch.setattr(planes, "BAND_ROWS", 2)
    component, drawn, encoded = open_model("m", tiny).parts["vae"], [], []
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(1, 3, 64, 136, generator=torch.Generator().manual_seed(2)) * 2 - 1
    for way in AUTOENCODER_WAYS:
        with borrow_decoder(component, borrowing(component, dtype=dtype, way=way)) as decode:
            drawn.append(decode(latents))
        with borrow_encoder(component, borrowing(component, dtype=dtype, way=way)) as encode:
            encoded.append(torch.cat(encode(pixels)))
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert all(torch.equal(encoded[0], other) for other in encoded[1:])
