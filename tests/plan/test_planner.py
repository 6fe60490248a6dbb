"""Plans as properties: whatever the request and the ceiling, what is planned fits and what is offered would."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from sdcli.domain import DtypeName, Request
from sdcli.errors import WillNotFit
from sdcli.models.folder import Component, Model
from sdcli.models.header import TensorInfo
from sdcli.plan.bytes import MAKING_BYTES, prompt_chunks, stage_needs, weights_of
from sdcli.plan.planner import (
    MARGIN_BYTES,
    OFFER_BYTES,
    SMALL_SCRATCH_BYTES,
    Means,
    Planned,
    make_plan,
    smallest_limit_bytes,
)
from sdcli.units import GIB, MIB, parse_size

BASELINE = 220 * MIB
PLAIN = Means()
REQUEST = Request("a red fox", "ugly", 512, 512, 20, 7.5, 1, 1)

REQUESTS = {
    "512": REQUEST,
    "256": replace(REQUEST, width=256, height=256),
    "wide": replace(REQUEST, width=1024, height=320),
    "without guidance": replace(REQUEST, guidance=1.0),
    "img2img": replace(REQUEST, strength=0.6),
    "long prompt": replace(REQUEST, prompt="fox " * 2000),
}


def component(name: Any, tensors: dict[str, tuple[int, ...]], **config: Any) -> Component:
    table = {key: (Path("weights"), key, TensorInfo("F16", shape, 0, 0)) for key, shape in tensors.items()}
    return Component(name, "Class", config, Path(), (), table)


def layers(prefix: str, *counted: tuple[int, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    shapes = [shape for count, shape in counted for _ in range(count)]
    weights = {f"{prefix}{index}.weight": shape for index, shape in enumerate(shapes)}
    return weights | {f"{prefix}{index}.bias": shape[:1] for index, shape in enumerate(shapes)}


@pytest.fixture(scope="module")
def model() -> Model:
    """A model of about the size and shape of Stable Diffusion 1.5, of headers alone."""
    unet = layers(
        "blocks.", (20, (320, 320, 3, 3)), (20, (640, 640, 3, 3)), (40, (1280, 1280, 3, 3)), (2, (10240, 1280)),
        (60, (1280, 1280)), (4, (1280, 2560, 3, 3)),
    )  # fmt: skip
    text = layers("encoder.", (48, (768, 768)), (12, (3072, 768)), (12, (768, 3072)))
    text |= {"embeddings.token_embedding.weight": (49408, 768)}
    vae = layers("decoder.", (14, (512, 512, 3, 3)), (8, (128, 128, 3, 3)))
    vae |= layers("encoder.", (8, (512, 512, 3, 3)), (8, (128, 128, 3, 3)))
    nothing = Component("scheduler", "DDIMScheduler", {}, Path())
    return Model(
        ref="sd15", folder=Path(),
        text_encoder=component("text_encoder", text, hidden_size=768, intermediate_size=3072),
        unet=component("unet", unet, block_out_channels=[320, 640, 1280, 1280]),
        vae=component("vae", vae, block_out_channels=[128, 256, 512, 512]),
        scheduler=nothing, tokenizer=replace(nothing, name="tokenizer"),
    )  # fmt: skip


def least(model: Model, request: Request, dtype: DtypeName, baseline: int = BASELINE, means: Means = PLAIN) -> int:
    """The least ceiling that is accepted, to the byte, by bisection."""
    low, high = baseline, 64 * GIB
    while high - low > 1:
        middle = (low + high) // 2
        try:
            make_plan(model, request, dtype, middle, baseline, means)
            high = middle
        except WillNotFit:
            low = middle
    return high


every_request = pytest.mark.parametrize(
    ("request_", "dtype"), list(product(REQUESTS.values(), ("fp32", "bf16"))),
    ids=[f"{name} {dtype}" for name, dtype in product(REQUESTS, ("fp32", "bf16"))],
)  # fmt: skip


@every_request
def test_no_plan_is_over_the_ceiling_by_its_own_prediction(model: Model, request_: Request, dtype: DtypeName) -> None:
    begin = least(model, request_, dtype)
    for limit in range(begin, begin + 6 * GIB, 97 * MIB):
        planned = make_plan(model, request_, dtype, limit, BASELINE)
        assert planned.peak_bytes + MARGIN_BYTES <= limit
        assert planned.needs == stage_needs(model, request_, planned.plan, dtype, BASELINE)
        assert all(need.peak_bytes > BASELINE for need in planned.needs)


@every_request
@pytest.mark.parametrize("means", [Means(), Means(prepared=True, fused=True)], ids=["plain", "prepared"])
def test_a_higher_ceiling_never_means_a_slower_step(
    model: Model, request_: Request, dtype: DtypeName, means: Means
) -> None:
    begin = least(model, request_, dtype, means=means)
    plans = [
        make_plan(model, request_, dtype, limit, BASELINE, means) for limit in range(begin, begin + 6 * GIB, 41 * MIB)
    ]
    assert plans[0].plan.residency != "resident" and plans[-1].plan.residency == "resident"
    for lower, higher in pairwise(plans):
        assert higher.step_s <= lower.step_s
        if replace(lower.plan, residency="", resident_bytes=0, reasons=()) == replace(
            higher.plan, residency="", resident_bytes=0, reasons=()
        ):
            assert higher.plan.resident_bytes >= lower.plan.resident_bytes


@every_request
def test_a_prepared_copy_needs_less_memory_and_less_time(model: Model, request_: Request, dtype: DtypeName) -> None:
    prepared = Means(prepared=True)
    limit = least(model, request_, dtype)
    assert least(model, request_, dtype, means=prepared) <= limit  # the decoder may need more
    plain, copied = (make_plan(model, request_, dtype, limit, BASELINE, means) for means in (Means(), prepared))
    assert copied.step_s < plain.step_s
    assert copied.plan.prepared and not plain.plan.prepared
    assert "a prepared copy" in copied.plan.reasons[0] and "the model's file" in plain.plan.reasons[0]


@every_request
def test_the_words_of_a_plan_are_true(model: Model, request_: Request, dtype: DtypeName) -> None:
    everything = weights_of(model.unet, dtype).matrices_bytes
    begin = least(model, request_, dtype)
    seen = set()
    for limit in range(begin, begin + 6 * GIB, 97 * MIB):
        plan = make_plan(model, request_, dtype, limit, BASELINE).plan
        seen.add(plan.residency)
        assert {"streamed": 0, "resident": everything}.get(plan.residency, plan.resident_bytes) == plan.resident_bytes
        assert 0 <= plan.resident_bytes <= everything
        assert ("no guidance" in plan.reasons[1]) == (not request_.guided)
        words = " ".join(plan.reasons[2:])
        assert ("small attention scratch" in words) == (plan.attention_scratch_bytes == SMALL_SCRATCH_BYTES)
        assert ("each level" in words, "each piece" in words) == (plan.give_back == "block", plan.give_back == "piece")
        assert ("maps twice" in words) == (plan.vae_tile is not None)
        assert ("a worker of its own" in words) == plan.fresh_decode
        assert request_.guided or plan.guidance == "batched"
    assert {"partial", "resident"} <= seen


def test_a_worker_of_its_own_decodes_where_the_picture_would_not_fit_else(model: Model) -> None:
    means = Means(prepared=True, fused=True)
    limit = least(model, REQUEST, "bf16", means=means)
    plan = make_plan(model, REQUEST, "bf16", limit, BASELINE, means).plan
    assert plan.fresh_decode and plan.vae_tile is not None
    assert not make_plan(model, REQUEST, "bf16", 4 * GIB, BASELINE, means).plan.fresh_decode
    same = stage_needs(model, REQUEST, replace(plan, fresh_decode=False), "bf16", BASELINE)
    assert same[:-1] == stage_needs(model, REQUEST, plan, "bf16", BASELINE)[:-1] and same[-1].peak_bytes > limit
    # nothing is denoised, so there is nothing to leave behind; and elsewhere than on a CPU it is not in the heap
    for other, way in ((replace(REQUEST, strength=0.0), means), (REQUEST, replace(means, heap=False))):
        exactly = least(model, other, "bf16", means=way)
        assert not make_plan(model, other, "bf16", exactly, BASELINE, way).plan.fresh_decode


def test_where_weights_are_laid_out_for_one_sample_guidance_goes_one_pass_after_another(model: Model) -> None:
    for limit in (None, 4 * GIB, least(model, REQUEST, "fp32", means=Means(batches=False))):
        assert make_plan(model, REQUEST, "fp32", limit, BASELINE, Means(batches=False)).plan.guidance == "sequential"
    plan = make_plan(model, REQUESTS["without guidance"], "fp32", None, BASELINE, Means(batches=False)).plan
    assert "no guidance" in plan.reasons[1]


def test_making_the_prepared_copy_takes_the_largest_weight_twice_and_a_little(model: Model) -> None:
    weights, small = weights_of(model.unet, "fp32"), replace(REQUEST, width=64, height=64)
    plan = replace(make_plan(model, small, "fp32", None, BASELINE).plan, prepared=True, residency="streamed")
    using, making = (
        {
            n.name: n.peak_bytes
            for n in stage_needs(model, small, replace(plan, resident_bytes=0), "fp32", BASELINE, making=it)
        }
        for it in (False, True)
    )
    assert making["denoise"] == BASELINE + weights.vectors_bytes + 2 * weights.largest_bytes + MAKING_BYTES
    assert using["denoise"] < making["denoise"] and using["decode"] == making["decode"]


def test_a_larger_margin_is_kept(model: Model) -> None:
    more = Means(margin_bytes=MARGIN_BYTES + 32 * MIB)
    assert least(model, REQUEST, "bf16", means=more) == least(model, REQUEST, "bf16") + 32 * MIB
    offered = smallest_limit_bytes(model, REQUEST, "bf16", BASELINE, more)
    make_plan(model, REQUEST, "bf16", offered, BASELINE, more)


def test_a_thousand_pictures_need_what_one_needs_unless_a_second_worker_is_handed_them(model: Model) -> None:
    many, latents = replace(REQUEST, count=1000), 4 * 64 * 64 * 4
    plan = make_plan(model, REQUEST, "bf16", None, BASELINE).plan
    one, all_of_them = (stage_needs(model, asked, plan, "bf16", BASELINE) for asked in (REQUEST, many))
    assert one == all_of_them
    handed = stage_needs(model, many, replace(plan, fresh_decode=True, vae_tile=2), "bf16", BASELINE)[-1]
    assert handed.name == "decode" and handed.peak_bytes == BASELINE + 3 * 1000 * latents


def test_without_a_ceiling_everything_stays_and_goes_at_once(model: Model) -> None:
    plan = make_plan(model, REQUEST, "bf16", None, BASELINE).plan
    assert (plan.residency, plan.guidance, plan.vae_tile) == ("resident", "batched", None)
    assert plan.resident_bytes == weights_of(model.unet, "bf16").matrices_bytes


@every_request
def test_m8_the_least_ceiling_is_accepted_and_a_byte_less_refused(
    model: Model, request_: Request, dtype: DtypeName
) -> None:
    exactly = least(model, request_, dtype)
    make_plan(model, request_, dtype, exactly, BASELINE)
    with pytest.raises(WillNotFit):
        make_plan(model, request_, dtype, exactly - 1, BASELINE)
    offered = smallest_limit_bytes(model, request_, dtype, BASELINE)
    assert exactly <= offered < exactly + OFFER_BYTES and offered % OFFER_BYTES == 0


@every_request
@pytest.mark.parametrize("below", [1, 50 * MIB, 100 * MIB, 400 * MIB])
def test_m6_a_refusal_names_stage_need_and_ceiling_and_what_it_offers_fits(
    model: Model, request_: Request, dtype: DtypeName, below: int
) -> None:
    limit = max(least(model, request_, dtype) - below, BASELINE + MIB)
    with pytest.raises(WillNotFit) as caught:
        make_plan(model, request_, dtype, limit, BASELINE)
    message = str(caught.value)
    found = re.fullmatch(
        r"will not fit: the stage (encode_prompt|encode_image|denoise|decode) needs ([\d.]+ [MG]iB) at (\d+x\d+),"
        r" the ceiling is ([\d.]+ [MG]iB); give --mem-limit (\d+MiB)"
        r"( or -W (\d+) -H (\d+)|; no smaller picture fits either)",
        message,
    )
    assert found is not None, message
    assert found[3] == f"{request_.width}x{request_.height}"
    offered = parse_size(found[5])
    assert make_plan(model, request_, dtype, offered, BASELINE).peak_bytes <= offered
    with pytest.raises(WillNotFit):
        make_plan(model, request_, dtype, offered - OFFER_BYTES, BASELINE)
    if found[7] is not None:
        width, height = int(found[7]), int(found[8])
        smaller = replace(request_, width=width, height=height)
        assert width % 64 == height % 64 == 0 and max(width, height) < max(request_.width, request_.height)
        make_plan(model, smaller, dtype, limit, BASELINE)


def test_the_size_offered_keeps_the_shape(model: Model) -> None:
    wide = replace(REQUEST, width=1536, height=768)
    limit = least(model, replace(REQUEST, width=768, height=384), "bf16") + OFFER_BYTES
    with pytest.raises(WillNotFit, match=r" or -W 768 -H 384$"):
        make_plan(model, wide, "bf16", limit, BASELINE)


@pytest.mark.parametrize("limit", [1, 100 * MIB, BASELINE])
def test_m5_below_the_baseline_the_baseline_is_named(model: Model, limit: int) -> None:
    with pytest.raises(
        WillNotFit, match=r"Python and torch alone take 220 MiB, .*; give --mem-limit (\d+)MiB or more"
    ) as caught:
        make_plan(model, REQUEST, "bf16", limit, BASELINE)
    offered = parse_size(re.findall(r"--mem-limit (\S+)", str(caught.value))[0])
    make_plan(model, REQUEST, "bf16", offered, BASELINE)


@pytest.mark.parametrize("change", [{"width": 520}, {"height": 1024}, {"strength": 0.5}, {"prompt": "fox " * 100}])
def test_more_to_do_never_needs_less(model: Model, change: dict[str, Any]) -> None:
    more = replace(REQUEST, **change)
    for dtype in ("bf16", "fp32"):
        assert least(model, more, dtype) >= least(model, REQUEST, dtype)


def test_half_precision_and_a_lower_baseline_need_less(model: Model) -> None:
    assert least(model, REQUEST, "bf16") == least(model, REQUEST, "fp16") < least(model, REQUEST, "fp32")
    assert least(model, REQUEST, "bf16", 100 * MIB) == least(model, REQUEST, "bf16") - 120 * MIB


def test_every_stage_of_the_request_and_no_other_is_predicted(model: Model) -> None:
    names = [need.name for need in make_plan(model, REQUEST, "bf16", None, 0).needs]
    assert names == ["encode_prompt", "denoise", "decode"]
    edit = make_plan(model, REQUESTS["img2img"], "bf16", None, 0)
    assert [need.name for need in edit.needs] == ["encode_prompt", "encode_image", "denoise", "decode"]
    assert edit.peak_bytes == max(need.peak_bytes for need in edit.needs)
    assert Planned(edit.plan, edit.needs[:1], 1.0).peak_bytes == edit.needs[0].peak_bytes


@pytest.mark.parametrize(
    ("prompt", "negative", "chunks"),
    [("", "", 1), ("x" * 74, "", 1), ("x" * 75, "", 2), ("", "x" * 150, 3), ("é" * 75, "", 3), ("x" * 10**6, "", 8)],
)
def test_prompts_are_counted_in_chunks_up_to_the_cap(prompt: str, negative: str, chunks: int) -> None:
    assert prompt_chunks(replace(REQUEST, prompt=prompt, negative=negative)) == chunks


def test_embedding_tables_stay_mapped_and_vectors_are_always_there(model: Model) -> None:
    weights = weights_of(model.text_encoder, "fp32")
    assert 49408 * 768 * 4 not in weights.matrices and len(weights.matrices) == 72
    assert weights.vectors_bytes == 4 * (48 * 768 + 12 * 3072 + 12 * 768)
    assert weights_of(model.text_encoder, "bf16").matrices_bytes * 2 == weights.matrices_bytes
