"""From prompt to pixels: what the tiny model draws is what diffusers' own pipeline draws."""

from __future__ import annotations

import json
import shutil
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from PIL import Image

from sdcli.domain import Request
from sdcli.engine.synthesize import write_model
from tests.engine.test_same_picture import gradient
from tests.families.sdxl.tiny import XL
from tests.support import RESIDENT, STREAMED, draw, largest_difference

REQUEST = Request("a fox in the snow", "a frog", 96, 64, 3, 5.0, 5, 1)
PLANS = {
    "streamed": STREAMED,
    "after each block": replace(STREAMED, give_back="block", attention_scratch_bytes=2**14),
    "after each piece, one by one": replace(STREAMED, give_back="piece", guidance="sequential"),
    "some of it, decoded in less": replace(
        RESIDENT, residency="partial", resident_bytes=400_000, guidance="sequential", ways={"decode": "recomputed"}
    ),
}


def opened(folder: Path, kind: Any = StableDiffusionXLPipeline) -> Any:
    made = kind.from_pretrained(folder, dtype=torch.float32, add_watermarker=False, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def pipeline(xl: Path) -> Any:
    return opened(xl)


def theirs(pipeline: Any, request: Request, **more: Any) -> torch.Tensor:
    """The library's picture, 0 to 255. An empty negative prompt is none."""
    if request.strength is None:
        more |= {"height": request.height, "width": request.width}
    made = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative or None,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        **more,
    ).images[0]
    return torch.from_numpy(np.asarray(made).astype(np.int32))


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_a_picture_is_the_pipeline_s(xl: Path, pipeline: Any, guidance: float) -> None:
    request = replace(REQUEST, guidance=guidance)
    ours = draw(xl, request=request)
    assert ours.float().std() > 20
    assert largest_difference(ours, theirs(pipeline, request)) <= 1


def test_a_prompt_that_spells_the_end_mark_is_pooled_there(xl: Path, pipeline: Any) -> None:
    request = replace(REQUEST, prompt="a fox <|endoftext|> in the snow")
    assert largest_difference(draw(xl, request=request), theirs(pipeline, request)) <= 1


def test_an_empty_negative_prompt_is_zeros(xl: Path, pipeline: Any) -> None:
    request = replace(REQUEST, negative="")
    ours = draw(xl, request=request)
    assert largest_difference(ours, theirs(pipeline, request)) <= 1
    encoded = theirs(pipeline, replace(request, negative=" "))
    assert largest_difference(ours, encoded) > 1, "zeros have no say"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.every(4)
def test_every_plan_has_the_same_bits(xl: Path, plan: Any) -> None:
    assert torch.equal(draw(xl, request=REQUEST, plan=plan), draw(xl, request=REQUEST))


def test_img2img_is_the_pipeline_s(xl: Path, pipeline: Any) -> None:
    request, init = replace(REQUEST, width=64, strength=0.6, steps=10), gradient(64, 64)
    other = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    other.set_progress_bar_config(disable=True)
    expected = theirs(other, request, image=init, strength=request.strength)
    assert largest_difference(draw(xl, request=request, payload=init.tobytes()), expected) <= 1


@pytest.mark.parametrize(
    ("sizes", "their_sizes"),
    [
        ({"original_size": (640, 480)}, {"original_size": (480, 640)}),
        ({"crop": (24, 8)}, {"crops_coords_top_left": (8, 24)}),
        ({"target_size": (640, 480)}, {"target_size": (480, 640)}),
    ],
    ids=repr,
)
def test_sizes_that_the_denoiser_is_told_are_the_pipeline_s(
    xl: Path, pipeline: Any, sizes: dict[str, Any], their_sizes: dict[str, Any]
) -> None:
    request = replace(REQUEST, steps=2, guidance=9.0)
    ours = draw(xl, request=replace(request, **sizes))
    assert largest_difference(ours, theirs(pipeline, request, **their_sizes)) <= 1
    assert largest_difference(ours, draw(xl, request=request)) > 1, "it has no say"


def changed(folder: Path, home: Path, **parts: dict[str, Any]) -> Path:
    """A model like the tiny one with other settings of its parts, and weights for them."""
    copy = home / "changed"
    copy.mkdir()
    deque(write_model(XL | {part: XL[part] | settings for part, settings in parts.items()}, copy), maxlen=0)
    return copy


@pytest.mark.every(6)
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting_is_the_pipeline_s(xl: Path, tmp_path: Path, channels: int, strength: float) -> None:
    folder = xl if channels == 4 else changed(xl, tmp_path, unet={"in_channels": channels})
    request = replace(REQUEST, width=64, strength=strength, steps=10, masked=True)
    init, marks = gradient(64, 64), np.zeros((64, 64), np.uint8)
    marks[8:40, 16:48] = 255
    inpaint = StableDiffusionXLInpaintPipeline(**opened(folder).components, add_watermarker=False)
    inpaint.set_progress_bar_config(disable=True)
    given = {"image": init, "mask_image": Image.fromarray(marks), "height": 64, "width": 64, "strength": strength}
    payload = init.tobytes() + marks.tobytes()
    ours = draw(folder, request=request, payload=payload)
    assert largest_difference(ours, theirs(inpaint, request, **given)) <= 1
    assert largest_difference(ours, draw(folder, request=replace(request, masked=False), payload=payload)) > 1


def test_v_prediction_with_zero_snr_is_the_pipeline_s(xl: Path, tmp_path: Path) -> None:
    """As NoobAI's v-prediction models have it."""
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    model = changed(xl, tmp_path, scheduler=settings)
    assert largest_difference(draw(model, request=REQUEST), theirs(opened(model), REQUEST)) <= 1


SMALL: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2], [4]],
    "reverse_transformer_layers_per_block": [[4, 3], [2, 1], 1],
}
"""As distilled ones are made: no attention in the middle, and depths of their own on the way up."""

SSD_1B: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "layers_per_block": 2,
    "transformer_layers_per_block": [0, 2, 4],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
VEGA: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "layers_per_block": 2,
    "transformer_layers_per_block": [0, 1, 2],
}
KOALA: dict[str, Any] = {
    "mid_block_type": None,
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 2, 3],
}
"""Without a middle (https://huggingface.co/etri-vilab/koala-700m)."""

DISTILLED = {"small": SMALL, "SSD-1B": SSD_1B, "Segmind-Vega": VEGA, "KOALA": KOALA}


@pytest.mark.parametrize("depths", DISTILLED.values(), ids=DISTILLED)
@pytest.mark.every(3)
def test_a_distilled_kind_of_other_depths_is_the_pipeline_s(xl: Path, tmp_path: Path, depths: dict[str, Any]) -> None:
    model, request = changed(xl, tmp_path, unet=depths), replace(REQUEST, steps=2, width=64)
    ours = draw(model, request=request)
    assert largest_difference(ours, theirs(opened(model), request)) <= 1
    assert torch.equal(draw(model, request=request, plan=PLANS["after each piece, one by one"]), ours)


@pytest.mark.full
def test_clip_skip_is_the_pipeline_s(xl: Path, pipeline: Any) -> None:
    """Without guidance: the library takes its negative prompt from another layer, and nobody else does."""
    request = replace(REQUEST, clip_skip=3, guidance=1.0)
    ours = draw(xl, request=request)
    assert largest_difference(ours, theirs(pipeline, request, clip_skip=1)) <= 1
    assert largest_difference(ours, draw(xl, request=replace(request, clip_skip=None))) > 1, "it has no say"


@pytest.mark.full
def test_an_index_that_wants_words_for_an_empty_prompt_gets_them(xl: Path, tmp_path: Path) -> None:
    copy, request = tmp_path / "copy", replace(REQUEST, negative="")
    shutil.copytree(xl, copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    ours = draw(copy, request=request)
    assert largest_difference(ours, theirs(opened(copy), request)) <= 1
    assert largest_difference(ours, draw(xl, request=request)) > 1


@pytest.mark.full
def test_prompts_of_several_chunks_and_weights_have_one_pooled_vector(xl: Path) -> None:
    """No library does it: words beyond the first chunk change words alone, and every plan has the same bits."""
    long = replace(REQUEST, prompt="a fox " * 60 + "(in:1.3) [rain:snow:1]")
    ours = draw(xl, request=long)
    assert torch.equal(draw(xl, request=long, plan=PLANS["after each piece, one by one"]), ours)
    assert largest_difference(ours, draw(xl, request=replace(long, prompt="a fox " * 60))) > 1
