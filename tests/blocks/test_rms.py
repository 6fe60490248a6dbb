"""The root mean square norm is diffusers' and transformers'."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from sdcli.blocks.rms import rms_norm
from tests.networks import DTYPES, numbers


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_the_libraries(dtype: torch.dtype) -> None:
    states, weight = numbers(3, 5, 16, dtype=dtype), numbers(16, seed=2, dtype=dtype)
    for library in (RMSNorm(16, 1e-6), Qwen3RMSNorm(16, 1e-6)):
        library.weight.data = weight
        assert torch.equal(rms_norm(states, weight, 1e-6), library(states))
    assert torch.equal(states, numbers(3, 5, 16, dtype=dtype))
