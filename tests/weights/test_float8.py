"""Every number of eight bits comes out as the library has it, in every type and from any slice."""

from __future__ import annotations

import pytest
import torch

from sdcli.weights import float8
from sdcli.weights.float8 import widen

EIGHT = [torch.float8_e4m3fn, torch.float8_e5m2]
WIDE = [torch.float32, torch.bfloat16, torch.float16]


def every(dtype: torch.dtype) -> torch.Tensor:
    """All 256, a byte each."""
    return torch.arange(256, dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("wide", WIDE, ids=str)
@pytest.mark.parametrize("dtype", EIGHT, ids=str)
def test_all_numbers_are_exact(dtype: torch.dtype, wide: torch.dtype) -> None:
    numbers = every(dtype)
    finite = numbers[torch.isfinite(numbers.float())]
    for some in (numbers, finite, finite.view(-1, 2) if len(finite) % 2 == 0 else finite, finite[3], finite[:0]):
        ours, theirs = widen(some, torch.empty(some.shape, dtype=wide)), some.to(wide)
        assert torch.equal(torch.nan_to_num(ours, 9.0), torch.nan_to_num(theirs, 9.0))
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.signbit() & ~ours.isnan(), theirs.signbit() & ~theirs.isnan())


@pytest.mark.parametrize("dtype", EIGHT, ids=str)
def test_a_slice_by_pieces_is_its_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "AT_A_TIME", 100)
    numbers = torch.randn(37, 23, generator=torch.Generator().manual_seed(1)).to(dtype)
    for some in (numbers, numbers[3:30, 2:20], numbers.t(), numbers[None]):
        assert torch.equal(widen(some, torch.empty(some.shape)), some.float())


def test_what_is_no_number_stays_none() -> None:
    numbers = torch.ones(4, 3).to(torch.float8_e4m3fn)
    numbers.view(torch.uint8)[2, 1] = 0xFF
    assert widen(numbers, torch.empty(4, 3)).isnan().nonzero().tolist() == [[2, 1]]
