"""The frugal forwards are the library's, bit for bit where it matters, in fewer bytes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from sdcli.components import frugal
from sdcli.components.frugal import make_frugal

DTYPES = [torch.float32, torch.bfloat16]


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pair(module: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The library's module with numbers in it, and a frugal copy."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    plain = module.eval().to(dtype)
    thrifty = copy.deepcopy(plain)
    make_frugal(thrifty)
    return plain, thrifty


BLOCKS: dict[str, dict[str, Any]] = {
    "same width": {"in_channels": 16, "temb_channels": 12},
    "wider": {"in_channels": 16, "out_channels": 32, "temb_channels": 12},
    "the autoencoder's": {"in_channels": 16, "out_channels": 8, "temb_channels": None, "eps": 1e-6},
    "rescaled": {"in_channels": 16, "temb_channels": 12, "output_scale_factor": 1.25},
    "bare shortcut": {"in_channels": 16, "out_channels": 32, "temb_channels": 12, "conv_shortcut_bias": False},
}


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_residual_block_is_the_library_s(kind: str, batch: int, memory_format: torch.memory_format) -> None:
    options = BLOCKS[kind]
    plain, thrifty = pair(ResnetBlock2D(groups=4, **options))
    states = numbers(batch, 16, 6, 7).contiguous(memory_format=memory_format)
    temb = numbers(batch, 12, seed=2) if options["temb_channels"] else None
    inputs = states.clone(), None if temb is None else temb.clone()
    torch.testing.assert_close(thrifty(states, temb), plain(states, temb), atol=1e-6, rtol=1e-6)
    assert torch.equal(states, inputs[0]), "the input is used again, as a skip connection"
    assert temb is None or torch.equal(temb, inputs[1]), "every block uses the same time embedding"


@torch.no_grad()
def test_a_block_without_a_time_embedding_given_is_the_library_s() -> None:
    plain, thrifty = pair(ResnetBlock2D(in_channels=16, temb_channels=None, groups=4))
    states = numbers(2, 16, 5, 5)
    torch.testing.assert_close(thrifty(states, None), plain(states, None), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("option", [{"up": True}, {"down": True}, {"time_embedding_norm": "scale_shift"},
                                    {"non_linearity": "mish"}, {"skip_time_act": True}])  # fmt: skip
@torch.no_grad()
def test_other_kinds_of_blocks_keep_the_library_s_forward(option: dict[str, Any]) -> None:
    plain, thrifty = pair(ResnetBlock2D(in_channels=16, temb_channels=12, groups=4, **option))
    assert "forward" not in vars(thrifty)
    states = numbers(2, 16, 6, 6)
    temb = numbers(2, 12, seed=2)
    torch.testing.assert_close(thrifty(states, temb), plain(states, temb), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(16, 9), (16, 4, 5)])
@torch.no_grad()
def test_a_group_norm_is_torch_s(batch: int, shape: tuple[int, ...]) -> None:
    plain, thrifty = pair(nn.GroupNorm(4, 16, eps=1e-3))
    states = numbers(batch, *shape)
    torch.testing.assert_close(thrifty(states), plain(states), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 4, 5, 9, 10, 11, 1024])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_feed_forward_is_the_library_s_however_its_rows_fall(
    monkeypatch: pytest.MonkeyPatch, batch: int, rows: int
) -> None:
    monkeypatch.setattr(frugal, "FEED_FORWARD_ROWS", rows)
    plain, thrifty = pair(FeedForward(16, mult=4, activation_fn="geglu"))
    states = numbers(batch, 10, 16)
    before = states.clone()
    torch.testing.assert_close(thrifty(states), plain(states), atol=1e-6, rtol=1e-6)
    assert torch.equal(states, before)


@torch.no_grad()
def test_hidden_states_exist_for_so_many_rows_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    _, thrifty = pair(FeedForward(16, mult=4, activation_fn="geglu"))
    seen, linear = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *w: seen.append(x.shape[-2]) or linear(x, *w))
    thrifty(numbers(2, 2 * frugal.FEED_FORWARD_ROWS + 1, 16))
    widest = frugal.FEED_FORWARD_ROWS
    assert seen == [widest, widest, widest, widest, 1, 1] * 2  # into and out of the hidden states, a sample each


@pytest.mark.parametrize("activation", ["gelu", "gelu-approximate", "swiglu"])
@torch.no_grad()
def test_other_feed_forwards_keep_the_library_s_forward(activation: str) -> None:
    plain, thrifty = pair(FeedForward(16, activation_fn=activation))
    assert "forward" not in vars(thrifty)
    assert torch.equal(thrifty(numbers(1, 3, 16)), plain(numbers(1, 3, 16)))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["norm", "feed-forward", "norm and silu"])
@torch.no_grad()
def test_a_batch_has_the_bits_of_its_samples(kind: str, dtype: torch.dtype, threads: int) -> None:
    """torch's own group norm does not, at this size and in this layout, on two threads."""
    picture = numbers(2, 64, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    module, states = {
        "norm": (nn.GroupNorm(8, 64), picture),
        "feed-forward": (FeedForward(32, activation_fn="geglu"), numbers(2, 1100, 32, dtype=dtype)),
        "norm and silu": (nn.GroupNorm(8, 64), picture),
    }[kind]
    _, thrifty = pair(module, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        forward = (lambda x: frugal._norm_silu(thrifty, x)) if kind == "norm and silu" else thrifty
        together = forward(states)
        alone = torch.cat([forward(sample) for sample in states.split(1)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_norm_and_silu_in_one_are_the_two(dtype: torch.dtype) -> None:
    norm, _ = pair(nn.GroupNorm(8, 32), dtype)
    assert isinstance(norm, nn.GroupNorm)
    for batch in (1, 2):
        states = numbers(batch, 32, 6, 6, dtype=dtype)
        both = torch.cat([nn.functional.silu(norm(sample[None])) for sample in states])
        assert torch.equal(frugal._norm_silu(norm, states), both)


@torch.no_grad()
def test_layouts_stay_as_they_are() -> None:
    _, norm = pair(nn.GroupNorm(4, 16))
    _, block = pair(ResnetBlock2D(in_channels=16, temb_channels=None, groups=4))
    states = numbers(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    for module in (norm, block):
        assert module(states).is_contiguous(memory_format=torch.channels_last)
