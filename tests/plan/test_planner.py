"""Plans as properties: whatever the request and the ceiling, what is planned fits and what is offered would."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from sdcli.domain import DtypeName, GiveBack, Plan, Request, Residency
from sdcli.errors import WillNotFit
from sdcli.families.autoencoders import AUTOENCODER_WAYS
from sdcli.families.registry import family_of
from sdcli.models.opened import open_model
from sdcli.plan import planner
from sdcli.plan.bytes import MAKING_BYTES, Subject, weights_of
from sdcli.plan.counts import Counts
from sdcli.plan.planner import (
    MARGIN_BYTES,
    NOT_LOADED,
    OFFER_BYTES,
    Means,
    Planned,
    make_plan,
    smallest_limit_bytes,
    smallest_plan,
)
from sdcli.plan.remainder import WITH_AVX2, WITH_AVX512, WITH_AVX512_BF16, WITH_AVX512_IN_FP32, Remainder
from sdcli.plan.seconds import TYPICAL_SPEED
from sdcli.plan.ways import SCRATCHES
from sdcli.units import GIB, MIB, parse_size
from tests.plan.subjects import needs_of, subject_of
from tests.support import subject

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


def plan_for(
    request: Request, dtype: DtypeName, limit: int | None, baseline: int = BASELINE, means: Means = PLAIN
) -> Planned:
    """A plan for this request."""
    return make_plan(subject_of(request, dtype), limit, baseline, means)


def offered_limit(request: Request, dtype: DtypeName, means: Means = PLAIN) -> int:
    """What a refusal would offer."""
    return smallest_limit_bytes(subject_of(request, dtype), BASELINE, means)


def least(request: Request, dtype: DtypeName, baseline: int = BASELINE, means: Means = PLAIN) -> int:
    """The least ceiling that is accepted, to the byte, by bisection."""
    low, high, asked = baseline, 64 * GIB, subject_of(request, dtype)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            make_plan(asked, middle, baseline, means)
            high = middle
        except WillNotFit:
            low = middle
    return high


every_request = pytest.mark.parametrize(
    ("request_", "dtype"), list(product(REQUESTS.values(), ("fp32", "bf16"))),
    ids=[f"{name} {dtype}" for name, dtype in product(REQUESTS, ("fp32", "bf16"))],
)  # fmt: skip


@every_request
def test_no_plan_is_over_the_ceiling_by_its_own_prediction(request_: Request, dtype: DtypeName) -> None:
    begin = least(request_, dtype)
    for limit in range(begin, begin + 6 * GIB, 97 * MIB):
        planned = plan_for(request_, dtype, limit)
        assert planned.peak_bytes + MARGIN_BYTES <= limit
        assert planned.needs == needs_of(subject_of(request_, dtype), planned.plan, BASELINE)
        assert all(need.peak_bytes > BASELINE for need in planned.needs)


@every_request
@pytest.mark.parametrize("means", [Means(), Means(prepared=True, fused=True)], ids=["plain", "prepared"])
@pytest.mark.every(2)
def test_a_higher_ceiling_never_means_a_slower_step(request_: Request, dtype: DtypeName, means: Means) -> None:
    request_ = replace(request_, steps=60)  # so many pay for loading
    begin = least(request_, dtype, means=means)
    plans = [plan_for(request_, dtype, limit, means=means) for limit in range(begin, begin + 6 * GIB, 41 * MIB)]
    assert plans[0].plan.residency != "resident" and plans[-1].plan.residency == "resident"
    for lower, higher in pairwise(plans):
        assert higher.step_s <= lower.step_s
        if replace(lower.plan, residency="", resident_bytes=0, reasons=()) == replace(
            higher.plan, residency="", resident_bytes=0, reasons=()
        ):
            assert higher.plan.resident_bytes >= lower.plan.resident_bytes


@every_request
@pytest.mark.parametrize("limit", [None, 64 * GIB])
def test_few_steps_do_not_load_what_a_prepared_copy_has(request_: Request, dtype: DtypeName, limit: int | None) -> None:
    copied, to_be_copied = Means(prepared=True), Means(prepared=True, making=True)

    def planned(steps: int, count: int, means: Means) -> Planned:
        return plan_for(replace(request_, steps=steps, count=count, strength=None), dtype, limit, means=means)

    few, many, pictures = planned(1, 1, copied), planned(60, 1, copied), planned(1, 60, copied)
    assert few.plan.residency == "streamed" and few.plan.prepared and few.plan.reasons[-1] == NOT_LOADED
    assert many.plan.residency == pictures.plan.residency == "resident"
    assert few.peak_bytes < many.peak_bytes
    assert not any(NOT_LOADED in one.plan.reasons for one in (many, pictures))
    made = planned(1, 1, to_be_copied)
    assert made.plan.residency == "streamed" and made.plan.prepared, "which the next runs find there"
    assert planned(1, 1, Means()).plan.residency == "resident"


@every_request
def test_no_copy_is_made_for_few_steps_of_a_small_network_nor_used_where_memory_cannot_keep_it(
    request_: Request, dtype: DtypeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(request_, steps=1, strength=None)
    for making in (False, True):
        unkept = Means(prepared=True, making=making, keeps_copy=False)
        assert plan_for(few, dtype, None, means=unkept).plan.residency == "resident"
    monkeypatch.setattr(planner, "WORTH_MAKING_BYTES", 2**40)
    assert plan_for(few, dtype, None, means=Means(prepared=True, making=True)).plan.residency == "resident"
    assert plan_for(few, dtype, None, means=Means(prepared=True)).plan.residency == "streamed"


@every_request
def test_no_plan_of_many_steps_blames_their_number(request_: Request, dtype: DtypeName) -> None:
    many, copied = replace(request_, steps=60), Means(prepared=True)
    begin = least(many, dtype, means=copied)
    for limit in range(begin, begin + 6 * GIB, 97 * MIB):
        assert NOT_LOADED not in plan_for(many, dtype, limit, means=copied).plan.reasons


def test_a_disk_that_is_read_anew_in_every_step_pays_for_loading() -> None:
    slow = Means(prepared=True, speed=replace(TYPICAL_SPEED, prepared_bytes=1e9))
    few = replace(REQUEST, steps=4)
    assert plan_for(few, "bf16", 8 * GIB, means=slow).plan.residency == "resident"
    assert plan_for(few, "bf16", 8 * GIB, means=Means(prepared=True)).plan.residency == "streamed"


@every_request
@pytest.mark.parametrize("residency", ["partial", "resident"])
def test_weights_that_stay_are_padded_whether_all_of_them_stay_or_some(
    request_: Request, dtype: DtypeName, residency: Residency
) -> None:
    asked, share = subject_of(request_, dtype), 512 * MIB
    plan = replace(smallest_plan(asked, BASELINE).plan, residency=residency, resident_bytes=share, prepared=True)
    plain, padded = (
        next(need for need in needs_of(asked, plan, BASELINE, remainder=remainder) if need.name == "denoise")
        for remainder in (WITH_AVX2, replace(WITH_AVX2, padding=1.25))
    )
    assert padded.peak_bytes - plain.peak_bytes == pytest.approx((1.25 - WITH_AVX2.padding) * share, abs=2)


@every_request
def test_a_prepared_copy_needs_less_memory_and_less_time(request_: Request, dtype: DtypeName) -> None:
    prepared = Means(prepared=True)
    limit = least(request_, dtype)
    assert least(request_, dtype, means=prepared) <= limit  # the decoder may need more
    plain, copied = (plan_for(request_, dtype, limit, means=means) for means in (Means(), prepared))
    assert copied.step_s < plain.step_s
    assert copied.plan.prepared and not plain.plan.prepared
    assert "a prepared copy" in copied.plan.reasons[0] and "the model's file" in plain.plan.reasons[0]


@every_request
def test_the_words_of_a_plan_are_true(request_: Request, dtype: DtypeName) -> None:
    everything = subject_of(request_, dtype).weights.matrices_bytes
    begin = least(request_, dtype)
    seen = set()
    for limit in range(begin, begin + 6 * GIB, 97 * MIB):
        plan = plan_for(request_, dtype, limit).plan
        seen.add(plan.residency)
        assert {"streamed": 0, "resident": everything}.get(plan.residency, plan.resident_bytes) == plan.resident_bytes
        assert 0 <= plan.resident_bytes <= everything
        assert ("no guidance" in plan.reasons[1]) == (not request_.guided)
        words = " ".join(plan.reasons[2:])
        assert ("small attention scratch" in words) == (plan.attention_scratch_bytes == SCRATCHES[1])
        assert ("each level" in words, "each piece" in words) == (plan.give_back == "block", plan.give_back == "piece")
        assert ("maps twice" in words) == ("recomputed" in plan.ways.values())
        assert ("never keeps its largest maps" in words) == ("unkept" in plan.ways.values())
        assert ("a worker of its own" in words) == plan.fresh_decode
        assert request_.guided or plan.guidance == "batched"
    assert {"partial", "resident"} <= seen


def test_a_worker_of_its_own_decodes_where_the_picture_would_not_fit_else() -> None:
    means = Means(prepared=True, fused=True)
    limit = least(REQUEST, "bf16", means=means)
    plan = plan_for(REQUEST, "bf16", limit, means=means).plan
    assert plan.fresh_decode and plan.ways == {"decode": "recomputed"}
    assert not plan_for(REQUEST, "bf16", 4 * GIB, means=means).plan.fresh_decode
    asked = subject_of(REQUEST, "bf16")
    same = needs_of(asked, replace(plan, fresh_decode=False), BASELINE)
    assert same[:-1] == needs_of(asked, plan, BASELINE)[:-1] and same[-1].peak_bytes > limit
    # nothing is denoised, so there is nothing to leave behind; and elsewhere than on a CPU it is not in the heap
    for other, way in ((replace(REQUEST, strength=0.0), means), (REQUEST, replace(means, heap=False))):
        exactly = least(other, "bf16", means=way)
        assert not plan_for(other, "bf16", exactly, means=way).plan.fresh_decode


def test_where_weights_are_laid_out_for_one_sample_guidance_goes_one_pass_after_another() -> None:
    for limit in (None, 4 * GIB, least(REQUEST, "fp32", means=Means(batches=False))):
        assert plan_for(REQUEST, "fp32", limit, means=Means(batches=False)).plan.guidance == "sequential"
    plan = plan_for(REQUESTS["without guidance"], "fp32", None, means=Means(batches=False)).plan
    assert "no guidance" in plan.reasons[1]


@pytest.mark.parametrize("limit", [None, 2 * GIB], ids=["none", "2 GiB"])
def test_where_no_fused_kernel_goes_without_scores_only_ways_with_a_scratch_are_counted(limit: int | None) -> None:
    """As in FP16 on a CPU, in BF16 on one that has no matrix unit, and on MPS."""
    whole = subject_of(REQUEST, "bf16")

    def counts_of(request: Request) -> Counts:
        counts = dict(whole.counts_of(request))
        steps = counts["denoise"]
        counts["denoise"] = replace(steps, ways={name: way for name, way in steps.ways.items() if "scratch" in name})
        return counts

    asked = replace(whole, counts_of=counts_of)
    planned = make_plan(asked, limit, BASELINE)
    assert planned.plan == make_plan(whole, limit, BASELINE).plan and planned.plan.attention_scratch_bytes


def test_making_the_prepared_copy_takes_the_largest_weight_twice_and_a_little() -> None:
    small = replace(REQUEST, width=64, height=64)
    asked = subject_of(small, "fp32")
    weights = asked.weights
    plan = replace(plan_for(small, "fp32", None).plan, prepared=True, residency="streamed")
    using, making = (
        {n.name: n.peak_bytes for n in needs_of(asked, replace(plan, resident_bytes=0), BASELINE, making=it)}
        for it in (False, True)
    )
    assert making["denoise"] == BASELINE + weights.vectors_bytes + 2 * weights.largest_bytes + MAKING_BYTES
    assert using["denoise"] < making["denoise"] and using["decode"] == making["decode"]


def test_a_larger_margin_is_kept() -> None:
    more = Means(margin_bytes=MARGIN_BYTES + 32 * MIB)
    assert least(REQUEST, "bf16", means=more) == least(REQUEST, "bf16") + 32 * MIB
    offered = offered_limit(REQUEST, "bf16", more)
    plan_for(REQUEST, "bf16", offered, means=more)


def test_a_thousand_pictures_need_what_one_needs_unless_a_second_worker_is_handed_them() -> None:
    many, latents = replace(REQUEST, count=1000), 4 * 64 * 64 * 4
    plan = plan_for(REQUEST, "bf16", None).plan
    one, all_of_them = (needs_of(subject_of(asked, "bf16"), plan, BASELINE) for asked in (REQUEST, many))
    assert one == all_of_them
    frugal = replace(plan, fresh_decode=True, ways={"decode": "recomputed"})
    handed = needs_of(subject_of(many, "bf16"), frugal, BASELINE)[-1]
    assert handed.name == "decode" and handed.peak_bytes == BASELINE + 3 * 1000 * latents


def test_without_a_ceiling_everything_stays_and_goes_at_once() -> None:
    plan = plan_for(REQUEST, "bf16", None).plan
    assert (plan.residency, plan.guidance, plan.ways) == ("resident", "batched", {"decode": "whole"})
    assert plan.resident_bytes == subject_of(REQUEST, "bf16").weights.matrices_bytes


@every_request
def test_m8_the_least_ceiling_is_accepted_and_a_byte_less_refused(request_: Request, dtype: DtypeName) -> None:
    exactly = least(request_, dtype)
    plan_for(request_, dtype, exactly)
    with pytest.raises(WillNotFit):
        plan_for(request_, dtype, exactly - 1)
    offered = offered_limit(request_, dtype)
    assert exactly <= offered < exactly + OFFER_BYTES and offered % OFFER_BYTES == 0


@every_request
@pytest.mark.parametrize("below", [1, 50 * MIB, 100 * MIB, 400 * MIB])
@pytest.mark.every(3)
def test_m6_a_refusal_names_stage_need_and_ceiling_and_what_it_offers_fits(
    request_: Request, dtype: DtypeName, below: int
) -> None:
    limit = max(least(request_, dtype) - below, BASELINE + MIB)
    with pytest.raises(WillNotFit) as caught:
        plan_for(request_, dtype, limit)
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
    assert plan_for(request_, dtype, offered).peak_bytes <= offered
    with pytest.raises(WillNotFit):
        plan_for(request_, dtype, offered - OFFER_BYTES)
    if found[7] is not None:
        width, height = int(found[7]), int(found[8])
        smaller = replace(request_, width=width, height=height)
        assert width % 64 == height % 64 == 0 and max(width, height) < max(request_.width, request_.height)
        plan_for(smaller, dtype, limit)


def test_the_size_offered_keeps_the_shape() -> None:
    wide = replace(REQUEST, width=1536, height=768)
    limit = least(replace(REQUEST, width=768, height=384), "bf16") + OFFER_BYTES
    with pytest.raises(WillNotFit, match=r" or -W 768 -H 384$"):
        plan_for(wide, "bf16", limit)


@pytest.mark.parametrize("limit", [1, 100 * MIB, BASELINE])
def test_m5_below_the_baseline_the_baseline_is_named(limit: int) -> None:
    with pytest.raises(
        WillNotFit, match=r"Python and torch alone take 220 MiB, .*; give --mem-limit (\d+)MiB or more"
    ) as caught:
        plan_for(REQUEST, "bf16", limit)
    offered = parse_size(re.findall(r"--mem-limit (\S+)", str(caught.value))[0])
    plan_for(REQUEST, "bf16", offered)


@pytest.mark.parametrize("limit", [100 * MIB, 300 * MIB])
def test_in_a_control_group_its_limit_is_what_to_raise(limit: int) -> None:
    means = Means(kernel_limit_bytes=limit)
    with pytest.raises(WillNotFit, match=r"; give --kernel-limit (\d+)MiB") as caught:
        plan_for(REQUEST, "bf16", limit, means=means)
    assert "--mem-limit" not in str(caught.value)
    offered = parse_size(re.findall(r"--kernel-limit (\d+MiB)", str(caught.value))[0])
    plan_for(REQUEST, "bf16", offered, means=means)


@pytest.mark.parametrize("change", [{"width": 520}, {"height": 1024}, {"strength": 0.5}, {"prompt": "fox " * 100}])
def test_more_to_do_never_needs_less(change: dict[str, Any]) -> None:
    more = replace(REQUEST, **change)
    for dtype in ("bf16", "fp32"):
        assert least(more, dtype) >= least(REQUEST, dtype)


def test_half_precision_and_a_lower_baseline_need_less() -> None:
    assert least(REQUEST, "bf16") == least(REQUEST, "fp16") < least(REQUEST, "fp32")
    assert least(REQUEST, "bf16", 100 * MIB) == least(REQUEST, "bf16") - 120 * MIB


def test_every_stage_of_the_request_and_no_other_is_predicted() -> None:
    names = [need.name for need in plan_for(REQUEST, "bf16", None, 0).needs]
    assert names == ["encode_prompt", "denoise", "decode"]
    edit = plan_for(REQUESTS["img2img"], "bf16", None, 0)
    assert [need.name for need in edit.needs] == ["encode_prompt", "encode_image", "denoise", "decode"]
    assert edit.peak_bytes == max(need.peak_bytes for need in edit.needs)
    assert Planned(edit.plan, edit.needs[:1], 1.0, 0).peak_bytes == edit.needs[0].peak_bytes


@pytest.mark.parametrize(
    ("prompt", "negative", "chunks"),
    [("", "", 1), ("x" * 74, "", 1), ("x" * 75, "", 2), ("", "x" * 150, 3), ("é" * 75, "", 3), ("x" * 10**6, "", 8)],
)
def test_prompts_are_counted_in_chunks_up_to_the_cap(tiny: Path, prompt: str, negative: str, chunks: int) -> None:
    model = open_model("m", tiny)
    assert family_of(model).chunks(model, replace(REQUEST, prompt=prompt, negative=negative)) == chunks


def test_embedding_tables_stay_mapped_and_vectors_are_always_there() -> None:
    counts = subject_of(REQUEST, "fp32").counts
    weights = weights_of(counts["encode_prompt"], "fp32")
    assert weights.matrices_bytes == 4 * (48 * 768 * 768 + 24 * 3072 * 768)
    assert weights.largest_bytes == 4 * 3072 * 768
    assert weights.vectors_bytes == 4 * (48 * 768 + 12 * 3072 + 12 * 768)
    assert weights_of(counts["encode_prompt"], "bf16").matrices_bytes * 2 == weights.matrices_bytes
    copied = weights_of(counts["decode"], "fp32")
    assert (copied.matrices_bytes, copied.largest_bytes) == (0, 0), "they are alive while they are used"


# Of the tiny model, as a dry run counts it

SMALL = replace(REQUEST, width=64, height=64, strength=0.6)
GIVING: tuple[GiveBack, ...] = ("stage", "block", "piece")
EVERY_WAY = [
    Plan("streamed", 0, guidance, scratch, (), {"encode_image": way, "decode": way}, give_back, prepared, fresh)
    for guidance, way, give_back, prepared, fresh in product(
        ("batched", "sequential"), AUTOENCODER_WAYS, GIVING, (False, True), (False, True)
    )
    for scratch in (0, *SCRATCHES)
]


def ways_of(asked: Subject, dtype: DtypeName) -> list[Plan]:
    """Every way that there is here: with a fused kernel or with one of the scratches."""
    fused = "one sample at a time" in asked.counts["denoise"].ways
    return [plan for plan in EVERY_WAY if (plan.attention_scratch_bytes == 0) == fused]


@pytest.mark.parametrize(
    "remainder", [WITH_AVX512, WITH_AVX2, WITH_AVX512_IN_FP32, WITH_AVX512_BF16], ids=["avx512", "avx2", "fp32", "bf16"]
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_stage_of_a_counted_model_grows_with_the_picture_and_with_what_stays(
    tiny: Path, dtype: DtypeName, remainder: Remainder
) -> None:
    sizes = [(64, 64), (128, 72), (128, 128), (256, 128), (256, 256), (512, 512)]
    subjects = [subject(tiny, replace(SMALL, width=width, height=height), dtype) for width, height in sizes]
    everything = subjects[0].weights.matrices_bytes
    for plan in ways_of(subjects[0], dtype):
        for smaller, larger in pairwise(needs_of(one, plan, BASELINE, remainder=remainder) for one in subjects):
            assert [need.name for need in larger] == ["encode_prompt", "encode_image", "denoise", "decode"]
            assert smaller[0] == larger[0] and all(need.peak_bytes > BASELINE for need in smaller)
            assert all(one.peak_bytes < more.peak_bytes for one, more in zip(smaller[1:], larger[1:], strict=True))
        for one in (subjects[0], subjects[-1]):
            shares = [
                needs_of(one, replace(plan, resident_bytes=share), BASELINE, remainder=remainder)[2].peak_bytes
                for share in (0, everything // 3, everything, 2 * everything)
            ]
            assert shares == sorted(shares) and shares[-1] == shares[-2]
            higher = needs_of(one, plan, BASELINE + MIB, remainder=remainder)
            lower = needs_of(one, plan, BASELINE, remainder=remainder)
            assert [need.peak_bytes - MIB for need in higher] == [need.peak_bytes for need in lower]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_way_to_save_memory_saves_some(tiny: Path, dtype: DtypeName) -> None:
    asked = subject(tiny, replace(SMALL, width=512, height=512), dtype)
    for stage in ("encode_image", "decode"):
        ways = asked.counts[stage].ways
        assert [*ways] == [*AUTOENCODER_WAYS]
        assert ways["recomputed"].live_bytes <= ways["whole"].live_bytes
        assert ways["whole"].flops < ways["recomputed"].flops < ways["unkept"].flops
    for plan in ways_of(asked, dtype):
        before = needs_of(asked, plan, BASELINE)
        for change, stage in (
            ({"guidance": "sequential"}, "denoise"),
            ({"give_back": "piece"}, "denoise"),
            ({"prepared": True}, "denoise"),
            ({"fresh_decode": True}, "decode"),
        ):
            saving = replace(plan, **change)
            after = needs_of(asked, saving, BASELINE)
            for one, other in zip(before, after, strict=True):
                assert other.peak_bytes <= one.peak_bytes, (change, one.name)
                assert (other == one) == (saving == plan or one.name != stage)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_counted_model_is_planned_at_its_least_ceiling_and_not_below(tiny: Path, dtype: DtypeName) -> None:
    asked = subject(tiny, SMALL, dtype)
    means = Means(fused="one sample at a time" in asked.counts["denoise"].ways)
    offered = smallest_limit_bytes(asked, BASELINE, means)
    assert make_plan(asked, offered, BASELINE, means).peak_bytes + MARGIN_BYTES <= offered
    with pytest.raises(WillNotFit, match="no smaller picture fits either"):
        make_plan(asked, offered - OFFER_BYTES, BASELINE, means)
