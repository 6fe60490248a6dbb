"""Bounded attention is attention, whatever the bound, and the bound holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from sdcli.blocks import attention
from sdcli.blocks.attention import FEW_KEYS, FUSED_HEAD_LIMIT, KEYS_MULTIPLE, BoundedAttention
from sdcli.blocks.softmax import MULTIPLE, goes_by_library
from tests.networks import DTYPES, numbers

CLOSE = 1e-5


def layer(seed: int = 0, **options: Any) -> Attention:
    """A layer of 2 heads of 8, or as asked."""
    torch.manual_seed(seed)
    return Attention(**{"query_dim": 16, "heads": 2, "dim_head": 8, **options}).eval()


@torch.no_grad()
def both(attn: Attention, scratch_bytes: int, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the bounded processor makes of it, and diffusers' own."""
    attn.set_processor(BoundedAttention(scratch_bytes))
    ours = attn(*inputs)
    attn.set_processor(AttnProcessor2_0())
    return ours, attn(*inputs)


@pytest.mark.parametrize("scratch_bytes", [1, 5000, 10_000, 99_991, 2**20, 2**40])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [FEW_KEYS, 257, 311])
def test_self_attention_is_the_library_s(tokens: int, batch: int, scratch_bytes: int) -> None:
    ours, theirs = both(layer(), scratch_bytes, numbers(batch, tokens, 16))
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("keys", [1, 77, FEW_KEYS - 1, FEW_KEYS, 8 * 77])
@pytest.mark.parametrize("scratch_bytes", [1, 30_000, 2**30])
def test_cross_attention_is_the_library_s(keys: int, scratch_bytes: int) -> None:
    attn = layer(cross_attention_dim=24)
    ours, theirs = both(attn, scratch_bytes, numbers(2, 63, 16), numbers(2, keys, 24, seed=2))
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, KEYS_MULTIPLE - 1, KEYS_MULTIPLE, 77, 300, 8 * 77])
@torch.no_grad()
def test_keys_that_fill_up_the_fused_kernel_s_take_no_part(keys: int, dtype: torch.dtype) -> None:
    attn = layer(cross_attention_dim=24).to(dtype)
    states, context = numbers(2, 63, 16, dtype=dtype), numbers(2, keys, 24, seed=2, dtype=dtype)
    expected = attn(states, context)
    attn.set_processor(BoundedAttention(1, fused=True))
    close = CLOSE if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(attn(states, context), expected, atol=close, rtol=0)


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
@pytest.mark.parametrize("keys", [None, 12, 80])
@torch.no_grad()
def test_a_few_heads_at_a_time_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, keys: int | None, heads: int
) -> None:
    attn = layer(heads=8, cross_attention_dim=24 if keys else None)
    states, context = numbers(1, 33, 16), numbers(1, keys, 24) if keys else None
    fused = BoundedAttention(1, fused=True)
    whole, given = fused.mix(attn, states, context), states.clone()
    longer = max(33, 16 * -(-(keys or 33) // 16))
    monkeypatch.setattr(attention, "HEADS_BYTES", heads * longer * attn.to_q.out_features // 8 * 4)
    seen, kernel = [], F.scaled_dot_product_attention

    def noted(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append(query.shape[1])
        return kernel(query, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    assert torch.equal(fused.mix(attn, states, context), whole)
    assert seen == {1: [1] * 8, 2: [2] * 4, 3: [3, 3, 2], 8: [8]}[heads]
    assert torch.equal(states, given)


@torch.no_grad()
def test_the_fused_kernel_gets_whole_multiples_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, kernel = [], F.scaled_dot_product_attention

    def noted(query: torch.Tensor, key: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        seen.append((key.shape[2], options.get("attn_mask") is not None))
        return kernel(query, key, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    attn, fused = layer(cross_attention_dim=24), BoundedAttention(1, fused=True)
    for keys in (77, 80, 154):
        fused.mix(attn, numbers(1, 5, 16), numbers(1, keys, 24))
    assert seen == [(80, True), (80, False), (160, True)]
    seen.clear()
    wide = layer(query_dim=16, heads=1, dim_head=2 * FUSED_HEAD_LIMIT)
    fused.mix(wide, numbers(1, FEW_KEYS, 16), None)
    assert seen == [], "heads as wide as that go in chunks"


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_a_mix_lacks_only_the_way_out(fused: bool) -> None:
    attn, bounded = layer(), BoundedAttention(2**14, fused=fused)
    states = numbers(2, 300, 16)
    assert torch.equal(attn.to_out[0](bounded.mix(attn, states, None)), bounded(attn, states))
    assert torch.equal(bounded.mix(attn, states, None), bounded.mix(attn, states, states))


@pytest.mark.parametrize("scratch_bytes", [1, 12_345, 2**30])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("side", [5, 17])
def test_the_autoencoder_s_attention_is_the_library_s(
    side: int, batch: int, memory_format: torch.memory_format, scratch_bytes: int
) -> None:
    attn = layer(
        query_dim=16, heads=1, dim_head=16, norm_num_groups=4, eps=1e-6, bias=True,
        residual_connection=True, rescale_output_factor=1.5, upcast_softmax=True, _from_deprecated_attn_block=True,
    )  # fmt: skip
    picture = numbers(batch, 16, side, side + 1).contiguous(memory_format=memory_format)
    before = picture.clone()
    ours, theirs = both(attn, scratch_bytes, picture)
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)
    assert torch.equal(picture, before), "the input is the residual: it must not change"


@pytest.mark.parametrize("size", [1, 7, 40])
def test_softmax_over_queries_in_parts_is_softmax(size: int) -> None:
    query, key, value = (numbers(2, 3, 301, size, seed=seed) for seed in range(3))
    whole = F.scaled_dot_product_attention(query, key, value, scale=0.3)
    for scratch_bytes in (1, 20_000, 2**30):
        parts = BoundedAttention(scratch_bytes)._attend(query, key, value, 0.3)
        torch.testing.assert_close(parts, whole, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scratch_bytes", [1, 4000, 65_537, 300_000, 2**30])
def test_scores_never_take_more_than_the_scratch(scratch_bytes: int, dtype: torch.dtype) -> None:
    batch, heads, queries, keys, size = 2, 2, 263, 300, 8
    attention = BoundedAttention(scratch_bytes)
    query, key = numbers(batch, heads, queries, size).to(dtype), numbers(batch, heads, keys, size).to(dtype)
    attention._attend(query, key, key, 1.0)
    row_bytes = batch * heads * keys * dtype.itemsize
    used_bytes = attention._scratch.numel() * dtype.itemsize
    assert used_bytes <= max(scratch_bytes, row_bytes)
    assert used_bytes <= row_bytes * queries, "no more than all the scores there are"
    if row_bytes <= scratch_bytes < row_bytes * queries:
        assert used_bytes > scratch_bytes / 2, "a scratch that is not used is wasted"


@pytest.mark.parametrize(
    ("scratch", "rows"), [(1, 1), (9, 1), (10, 1), (20, 2), (35, 3), (500, 50), (999, 50), (1000, 100)]
)
def test_shares_are_equal_and_as_few_as_fit(scratch: int, rows: int) -> None:
    assert BoundedAttention(scratch).rows(10, 100) == rows


def test_one_scratch_serves_every_layer_and_grows_only_when_it_must() -> None:
    attention = BoundedAttention(2**22)
    layers = [layer(seed) for seed in range(3)]
    places = []
    with torch.no_grad():
        for attn, tokens in zip(layers, (300, 280, 300), strict=True):
            attn.set_processor(attention)
            attn(numbers(1, tokens, 16))
            places.append(attention._scratch.data_ptr())
        assert len(set(places)) == 1
        held = attention._scratch.numel()
        layers[0](numbers(1, 400, 16))
    assert attention._scratch.numel() > held


def test_an_old_scratch_is_gone_before_a_new_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = BoundedAttention(2**20)
    attention._room(10, torch.float32, torch.device("cpu"))
    held_meanwhile, zeros = [], torch.zeros

    def noted(*shape: int, **options: Any) -> torch.Tensor:
        held_meanwhile.append(attention._scratch.numel())
        return zeros(*shape, **options)

    monkeypatch.setattr(torch, "zeros", noted)
    attention._room(20, torch.float32, torch.device("cpu"))
    attention._room(20, torch.bfloat16, torch.device("cpu"))
    assert held_meanwhile == [0, 0]


def test_a_freed_scratch_holds_nothing_and_can_be_had_again() -> None:
    attention = BoundedAttention(2**20)
    attn = layer()
    attn.set_processor(attention)
    with torch.no_grad():
        before = attn(numbers(1, 300, 16))
        attention.free()
        assert attention._scratch.numel() == 0
        assert torch.equal(attn(numbers(1, 300, 16)), before)


def test_a_device_that_reads_what_beta_0_should_ignore_finds_no_nan_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As MPS does in torch 2.13 (pytorch#187521): a scratch that was never written would spoil the picture."""
    right = torch.baddbmm

    def as_on_mps(into: torch.Tensor, *factors: torch.Tensor, beta: float, alpha: float, out: torch.Tensor) -> None:
        out.copy_(beta * into + right(into, *factors, beta=0, alpha=alpha))

    def dirty(*shape: int, **options: Any) -> torch.Tensor:
        return torch.full(shape, torch.nan, **options)

    query, key = numbers(1, 2, 300, 8), numbers(1, 2, 300, 8, seed=2)
    expected = BoundedAttention(2**14)._attend(query, key, key, 0.3)
    monkeypatch.setattr(torch, "baddbmm", as_on_mps)
    monkeypatch.setattr(torch, "empty", dirty)
    torch.testing.assert_close(BoundedAttention(2**14)._attend(query, key, key, 0.3), expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keys", [None, 77, 300])
@torch.no_grad()
def test_scores_that_fp16_cannot_hold_are_held(keys: int | None, dtype: torch.dtype, fused: bool) -> None:
    """As those of Stable Diffusion 2.1, whose config says upcast_attention."""
    attn = layer(upcast_attention=True, cross_attention_dim=None if keys is None else 24)
    for weight in (attn.to_q.weight, attn.to_k.weight):
        weight.mul_(1000)
    states, context = numbers(1, 300, 16), None if keys is None else numbers(1, keys, 24, seed=2)
    query, key = attn.to_q(states), attn.to_k(states if context is None else context)
    assert (query.abs().max() < 60_000) and (query @ key.transpose(1, 2)).abs().max() > 300_000
    expected = attn(states, context)
    bounded = BoundedAttention(2**14, fused=fused)
    mixed = bounded(attn.to(dtype), states.to(dtype), context if context is None else context.to(dtype))
    assert torch.isfinite(mixed).all()
    assert (mixed - expected).abs().mean() < 0.05, "where two scores are close, rounding decides"


@pytest.mark.parametrize("keys", [77, FEW_KEYS, 300])
@torch.no_grad()
def test_in_fp32_an_upcast_changes_no_bit(keys: int) -> None:
    states = numbers(2, keys, 16)
    plain, upcast = (BoundedAttention(2**14)(layer(upcast_attention=flag), states) for flag in (False, True))
    assert torch.equal(plain, upcast)


@pytest.mark.parametrize("scratch_bytes", [1, 65_537, 300_000])
def test_upcast_scores_and_their_copy_fit_the_scratch(scratch_bytes: int) -> None:
    attention, (batch, heads, tokens) = BoundedAttention(scratch_bytes), (2, 2, 263)
    query = numbers(batch, heads, tokens, 8, dtype=torch.bfloat16)
    attention._attend(query, query, query, 1.0, torch.float32)
    used = attention._scratch.numel()
    assert used * (4 + 2) <= max(scratch_bytes, batch * heads * tokens * (4 + 2))


def test_a_batch_and_its_samples_alone_agree() -> None:
    attn, states = layer(), numbers(2, 300, 16)
    attn.set_processor(BoundedAttention(10_000))
    with torch.no_grad():
        alone = torch.cat([attn(sample[None]) for sample in states])
        torch.testing.assert_close(attn(states), alone, atol=CLOSE, rtol=0)


@torch.no_grad()
def test_what_stable_diffusion_does_not_have_is_refused() -> None:
    for attn, mask in (
        (layer(), torch.zeros(1, 4, 4)),
        (layer(qk_norm="layer_norm"), None),
        (layer(query_dim=32, spatial_norm_dim=16), None),
    ):
        attn.set_processor(BoundedAttention(2**20))
        with pytest.raises(ValueError, match="not part of Stable Diffusion"):
            attn(numbers(1, 4, attn.query_dim), attention_mask=mask)


# By the library's softmax: in BF16 on processors with vector units for it

by_library = pytest.mark.skipif(
    not goes_by_library(torch.empty(0, dtype=torch.bfloat16)), reason="this processor or torch has no such kernel"
)


@by_library
@pytest.mark.parametrize("scratch_bytes", [1, 50_000, 2**30])
@pytest.mark.parametrize("keys", [1, MULTIPLE - 1, MULTIPLE, 77, 300])
@torch.no_grad()
def test_by_the_library_s_softmax_attention_is_the_same(keys: int, scratch_bytes: int) -> None:
    query, key, value = (numbers(2, 3, count, 40, seed=seed) for seed, count in enumerate((63, keys, keys)))
    expected = F.scaled_dot_product_attention(query, key, value, scale=0.3)
    halves = (states.bfloat16() for states in (query, key, value))
    found = BoundedAttention(scratch_bytes).attend(*halves, 0.3)
    torch.testing.assert_close(found.float(), expected, atol=4e-2, rtol=0)
    torch.testing.assert_close(found.float().mean(), expected.mean(), atol=1e-3, rtol=0)


@by_library
@pytest.mark.parametrize("scratch_bytes", [1, 100_000, 2**20])
@torch.no_grad()
def test_scores_and_what_the_library_makes_of_them_fit_the_scratch(
    scratch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, tokens, seen = 4, 300, []
    kept = -(-tokens // MULTIPLE) * MULTIPLE

    def noted(scores: torch.Tensor) -> torch.Tensor:
        seen.append(2 * scores.numel() * scores.element_size())
        return scores.softmax(-1)

    monkeypatch.setattr(attention, "softmax", noted)
    query = numbers(1, heads, tokens, 8, dtype=torch.bfloat16)
    BoundedAttention(scratch_bytes).attend(query, query, query, 1.0)
    assert max(seen) <= max(scratch_bytes, 2 * kept * query.element_size())
    assert sum(seen) == 2 * heads * tokens * kept * query.element_size(), "each score once"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_do_not_go_by_the_library_s_softmax(dtype: torch.dtype) -> None:
    assert not goes_by_library(torch.empty(0, dtype=dtype))
