"""The frugal forwards are the library's, bit for bit where it matters, in fewer bytes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from sdcli.blocks import frugal
from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.frugal import make_frugal
from tests.networks import DTYPES, numbers


def pair(module: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """The library's module with numbers in it, and a frugal copy."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    plain = module.eval().to(dtype)
    thrifty = copy.deepcopy(plain)
    if isinstance(thrifty, Transformer2DModel):
        for block in thrifty.transformer_blocks:
            block.attn1.set_processor(BoundedAttention(2**14))
            block.attn2.set_processor(BoundedAttention(2**14))
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
    temb = numbers(1, 12, seed=2) if options["temb_channels"] else None
    before = states.clone()
    temb_before = temb if temb is None else temb.clone()
    torch.testing.assert_close(thrifty(states, temb), plain(states, temb), atol=1e-6, rtol=1e-6)
    assert torch.equal(states, before), "the input is used again, as a skip connection"
    assert temb is None or temb_before is None or torch.equal(temb, temb_before), (
        "every block uses the same time embedding"
    )


@pytest.mark.parametrize("kind", ["same width", "wider", "bare shortcut"])
@torch.no_grad()
def test_states_given_away_are_written_over_where_they_are_not_added_again(kind: str) -> None:
    plain, thrifty = pair(ResnetBlock2D(groups=4, **BLOCKS[kind]))
    states, temb = numbers(2, 16, 6, 7), numbers(1, 12, seed=2)
    expected, before = plain(states, temb), states.clone()
    torch.testing.assert_close(thrifty([states], temb), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(states, before) == (kind == "same width")


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
    monkeypatch.setattr(frugal, "FEED_FORWARD_WORK", 0)
    plain, thrifty = pair(transformer())
    plain, thrifty = (module.transformer_blocks[0].ff for module in (plain, thrifty))
    normed, states = numbers(batch, 10, 16), numbers(batch, 10, 16, seed=2)
    before, expected = normed.clone(), states + plain(normed)
    output = thrifty(normed, states)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)
    assert output.data_ptr() == states.data_ptr() and torch.equal(normed, before)


@pytest.mark.parametrize("work", [0, 16**2 * 300, 16**2 * 1000])
@torch.no_grad()
def test_hidden_states_exist_for_so_many_rows_at_most(monkeypatch: pytest.MonkeyPatch, work: int) -> None:
    thrifty = pair(transformer())[1].transformer_blocks[0].ff
    seen, linear = [], torch.nn.functional.linear

    def noted(states: torch.Tensor, *layer: Any) -> torch.Tensor:
        seen.append(states.shape[-2])
        return linear(states, *layer)

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    monkeypatch.setattr(frugal, "FEED_FORWARD_WORK", work)
    widest = max(frugal.FEED_FORWARD_ROWS, work // 16**2)
    tokens = 2 * widest + 1
    thrifty(numbers(1, tokens, 16), numbers(1, tokens, 16))
    assert seen == [widest, widest, widest, widest, 1, 1]  # into and out of the hidden states


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "convolutions": {},
    "linear projections": {"use_linear_projection": True},
    "two blocks": {"num_layers": 2},
}


def transformer(in_channels: int = 16, **options: Any) -> Transformer2DModel:
    return Transformer2DModel(2, 8, in_channels, norm_num_groups=4, cross_attention_dim=12, **options)


@pytest.mark.parametrize("kind", TRANSFORMERS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_transformer_is_the_library_s_in_the_place_of_its_input(
    kind: str, batch: int, memory_format: torch.memory_format
) -> None:
    plain, thrifty = pair(transformer(**TRANSFORMERS[kind]))
    states, context = numbers(batch, 16, 5, 7).contiguous(memory_format=memory_format), numbers(batch, 9, 12, seed=2)
    (expected,) = plain(states, encoder_hidden_states=context, return_dict=False)
    (output,) = thrifty(states, encoder_hidden_states=context, return_dict=False)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)
    assert output.data_ptr() == states.data_ptr()
    assert output.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize(("side", "side_by_side"), [(3, True), (4, False)])
@torch.no_grad()
def test_samples_go_side_by_side_where_weights_are_larger_than_maps(side: int, side_by_side: bool) -> None:
    thrifty = pair(transformer())[1]
    used: list[str] = []
    for name, layer in thrifty.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.register_forward_hook(lambda *_, name=name: used.append(name))
    states, context = numbers(2, 16, side, side), numbers(2, 9, 12, seed=2)
    thrifty(states, encoder_hidden_states=context)
    once = used[: len(used) // 2]
    assert (used == [*once, *once]) != side_by_side
    assert used[:2] == ["proj_in", "proj_in"] if side_by_side else used[1] != "proj_in"


def test_a_transformer_with_the_library_s_attention_keeps_its_forward() -> None:
    module = transformer()
    make_frugal(module)
    assert "forward" not in vars(module) and "forward" not in vars(module.transformer_blocks[0].ff)


@pytest.mark.parametrize("activation", ["gelu", "gelu-approximate", "swiglu"])
@torch.no_grad()
def test_other_feed_forwards_keep_the_library_s_forward(activation: str) -> None:
    plain, thrifty = pair(FeedForward(16, activation_fn=activation))
    assert "forward" not in vars(thrifty)
    assert torch.equal(thrifty(numbers(1, 3, 16)), plain(numbers(1, 3, 16)))


@pytest.mark.every(4)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["norm", "transformer", "transformer of small maps", "norm and silu"])
@torch.no_grad()
def test_a_batch_has_the_bits_of_its_samples(kind: str, dtype: torch.dtype, threads: int) -> None:
    """torch's own group norm does not, at this size and in this layout, on two threads."""
    picture = numbers(2, 64, 32, 32, dtype=dtype).contiguous(memory_format=torch.channels_last)
    module, states = {
        "norm": (nn.GroupNorm(8, 64), picture),
        "transformer": (transformer(in_channels=64), picture),
        "transformer of small maps": (transformer(in_channels=64), picture[:, :, :7, :7]),
        "norm and silu": (nn.GroupNorm(8, 64), picture),
    }[kind]
    thrifty: Any = pair(module, dtype)[1]

    def forward(some: torch.Tensor) -> torch.Tensor:
        if kind == "norm and silu":
            return frugal._norm_silu(thrifty, 1, some, torch.empty_like(some))
        return (
            thrifty(some, encoder_hidden_states=some[:, :12].flatten(2).mT)[0]
            if "transformer" in kind
            else thrifty(some)
        )

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = forward(states.clone())
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
        assert torch.equal(frugal._norm_silu(norm, 1, states, torch.empty_like(states)), both)
        torch.testing.assert_close(frugal._norm_silu(norm, 2, states, torch.empty_like(states)), both)
        assert torch.equal(frugal._norm_silu(norm, 1, states, states), both) and torch.equal(states, both)


@torch.no_grad()
def test_layouts_stay_as_they_are() -> None:
    _, norm = pair(nn.GroupNorm(4, 16))
    _, block = pair(ResnetBlock2D(in_channels=16, temb_channels=None, groups=4))
    states = numbers(2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    for output in (norm(states), block(states, None)):
        assert output.is_contiguous(memory_format=torch.channels_last)
