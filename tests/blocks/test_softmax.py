"""The library's softmax is softmax, and one that is not is left alone."""

from __future__ import annotations

import gc
import math

import pytest
import torch

from sdcli.blocks import softmax as library
from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.softmax import MULTIPLE, goes_by_library, softmax
from sdcli.engine.dry_run import DryRun
from tests.networks import numbers

there = pytest.mark.skipif(
    not goes_by_library(torch.empty(0, dtype=torch.bfloat16)), reason="this processor has no such kernel"
)


@there
@pytest.mark.parametrize("columns", [1, MULTIPLE, 77, 4096])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
def test_each_row_is_what_torch_makes_of_it(columns: int, spread: float) -> None:
    scores = (numbers(2, 5, columns) * spread).bfloat16()
    given = scores.clone()
    torch.testing.assert_close(softmax(scores).float(), scores.float().softmax(-1), atol=1e-6, rtol=2**-8)
    assert torch.equal(scores, given)


@there
def test_a_place_without_a_say_has_none() -> None:
    scores = numbers(1, 4, 2 * MULTIPLE, dtype=torch.bfloat16)
    scores[:, :, 20:] = -math.inf
    found = softmax(scores)
    assert (found[:, :, 20:] == 0).all()
    torch.testing.assert_close(found.float(), scores.float().softmax(-1), atol=1e-6, rtol=2**-8)


@there
def test_what_it_made_lives_as_long_as_it_is_looked_at() -> None:
    found = softmax(numbers(1, 4, MULTIPLE, dtype=torch.bfloat16))
    before = found.clone()
    gc.collect()
    for _ in range(9):
        softmax(numbers(1, 4, MULTIPLE, seed=5, dtype=torch.bfloat16))
    assert torch.equal(found, before)


@pytest.mark.parametrize("kind", ["wrong", "refuses"])
def test_one_that_is_wrong_or_refuses_is_not_used(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(scores: torch.Tensor) -> torch.Tensor:
        if kind == "refuses":
            raise RuntimeError("could not create a primitive")
        return scores.exp()

    monkeypatch.setattr(library, "softmax", other)
    library._works.cache_clear()
    assert not library._works() and not goes_by_library(torch.empty(0, dtype=torch.bfloat16))
    library._works.cache_clear()


@there
def test_a_dry_run_that_comes_first_does_not_decide_for_the_run() -> None:
    library._works.cache_clear()
    with DryRun():
        query = torch.empty(1, 2, 300, 8, dtype=torch.bfloat16, device="meta")
        BoundedAttention(2**20).attend(query, query, query, 1.0)
    assert goes_by_library(torch.empty(0, dtype=torch.bfloat16))
