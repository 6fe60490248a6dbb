"""The self-test finds this machine right, and finds out what is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdcli.devices import open_device
from sdcli.domain import DtypeName
from sdcli.engine.self_test import ALLOWED, self_test
from sdcli.messages import SelfTest, SelfTested
from sdcli.units import MIB


def outcome_of(dtype: DtypeName, copied_bytes: int = 0) -> SelfTested:
    *_, last = self_test(SelfTest(dtype, copied_bytes), open_device("cpu"))
    assert isinstance(last, SelfTested)
    return last


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_a_cpu_computes_is_right(dtype: DtypeName) -> None:
    found = outcome_of(dtype, 8 * MIB)
    assert set(found.differences) == {"convolution", "product", "attention", "causal attention"}
    assert found.allowed == ALLOWED[dtype] and max(found.differences.values()) < found.allowed / 3
    assert found.memory_bytes is not None and found.memory_bytes > 1e7
    assert outcome_of(dtype).memory_bytes is None


def test_attention_that_sees_what_comes_later_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """As causal attention in half precision was on MPS up to torch 2.12."""
    attend = F.scaled_dot_product_attention

    def leaking(*tensors: torch.Tensor, is_causal: bool = False, **more: Any) -> torch.Tensor:
        return attend(*tensors, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", leaking)
    found = outcome_of("fp32")
    assert found.differences["causal attention"] > found.allowed > found.differences["attention"]


def test_what_is_no_number_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_denoised(layer: nn.Module, *_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda states: layer(states) * math.nan

    monkeypatch.setattr("sdcli.engine.self_test.as_denoised", as_denoised)
    differences = outcome_of("fp32").differences
    assert differences["convolution"] == differences["product"] == math.inf > differences["attention"]
