"""From prompt to pixels: what the tiny model draws is what diffusers' own pipeline draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from diffusers.pipelines.flux2.pipeline_flux2_klein_inpaint import Flux2KleinInpaintPipeline
from PIL import Image

from sdcli.domain import Request
from tests import qwen
from tests.support import RESIDENT, STREAMED, draw, largest_difference

REQUEST = Request("a fox in the snow", "a frog", 96, 64, 3, 1.0, 5, 1)
PLANS = {
    "streamed": STREAMED,
    "after each block": replace(STREAMED, give_back="block", attention_scratch_bytes=8 * 2**20),
    "after each piece, one by one": replace(STREAMED, give_back="piece", guidance="sequential"),
    "decoded in less": replace(RESIDENT, ways={"decode": "recomputed"}, give_back="piece"),
}


@pytest.fixture(scope="module")
def pipeline(klein: Path) -> Any:
    made = Flux2KleinPipeline.from_pretrained(klein, dtype=torch.float32)
    made.tokenizer.chat_template = qwen.TEMPLATE
    made.set_progress_bar_config(disable=True)
    return made


def theirs(pipeline: Any, request: Request, **more: Any) -> torch.Tensor:
    """The library's picture, 0 to 255."""
    made = pipeline(
        prompt=request.prompt,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="pt",
        **more,
    ).images[0]
    return (made.permute(1, 2, 0) * 255).round().int()


def test_a_picture_is_the_pipeline_s(klein: Path, pipeline: Any) -> None:
    ours = draw(klein, request=REQUEST)
    assert ours.float().std() > 20
    assert largest_difference(ours, theirs(pipeline, REQUEST)) <= 1


@pytest.mark.parametrize("size", [(64, 64), (80, 112)], ids=str)
def test_so_it_is_at_another_size_and_number_of_steps(klein: Path, pipeline: Any, size: tuple[int, int]) -> None:
    request = replace(REQUEST, width=size[0], height=size[1], steps=1 + size[0] // 32)
    assert largest_difference(draw(klein, request=request), theirs(pipeline, request)) <= 1


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.every(4)
def test_every_plan_has_the_same_bits(klein: Path, plan: Any) -> None:
    for request in (REQUEST, replace(REQUEST, guidance=3.0)):
        assert torch.equal(draw(klein, request=request, plan=plan), draw(klein, request=request))


def test_guidance_is_that_of_the_base_model_s_pipeline(klein: Path, pipeline: Any) -> None:
    base = Flux2KleinPipeline(**pipeline.components, is_distilled=False)
    base.set_progress_bar_config(disable=True)
    request = replace(REQUEST, guidance=30.0)
    negative, _ = base.encode_prompt(request.negative)
    ours = draw(klein, request=request)
    assert largest_difference(ours, theirs(base, request, negative_prompt_embeds=negative)) <= 1
    assert largest_difference(ours, draw(klein, request=REQUEST)) > 20, "it has no say"


def test_img2img_begins_between_the_picture_and_noise(klein: Path, pipeline: Any) -> None:
    """By the library's own pieces, since it has no pipeline for it: encoder, scheduler, and the last of its steps."""
    request = replace(REQUEST, strength=0.67)
    rgb = torch.randint(256, (request.height, request.width, 3), generator=torch.Generator().manual_seed(3))
    pixels = (rgb.permute(2, 0, 1)[None] / 127.5 - 1).float()
    generator = torch.Generator().manual_seed(request.seed)
    latents = pipeline._encode_vae_image(pixels, generator)
    words, places = pipeline.encode_prompt(request.prompt)
    scheduler, tokens = pipeline.scheduler, latents.shape[2] * latents.shape[3]
    scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3], mu=compute_empirical_mu(tokens, 3))
    scheduler.set_begin_index(1)
    noise = torch.randn(latents.shape, generator=generator)
    there, noisy = (
        pipeline._prepare_latent_ids(latents),
        scheduler.scale_noise(latents, scheduler.timesteps[1:2], noise),
    )
    states = pipeline._pack_latents(noisy)
    with torch.no_grad():
        for time in scheduler.timesteps[1:]:
            output = pipeline.transformer(states, words, time[None] / 1000, there, places, return_dict=False)[0]
            states = scheduler.step(output, time, states, return_dict=False)[0]
        bn = pipeline.vae.bn
        unpacked = states[0].T.view(latents.shape) * (bn.running_var + 1e-4).sqrt()[:, None, None]
        unpacked = pipeline._unpatchify_latents(unpacked + bn.running_mean[:, None, None])
        expected = pipeline.vae.decode(unpacked, return_dict=False)[0][0]
    levels = ((expected / 2 + 0.5).clamp(0, 1).permute(1, 2, 0) * 255).round().int()
    ours = draw(klein, request=request, payload=rgb.to(torch.uint8).numpy().tobytes())
    assert largest_difference(ours, levels) <= 1


@pytest.mark.parametrize("sizes", [[(64, 80)], [(64, 64), (112, 64)]], ids=str)
@pytest.mark.every(2)
def test_pictures_to_go_by_are_those_of_the_pipeline(klein: Path, pipeline: Any, sizes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(3)
    levels = [torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8) for w, h in sizes]
    request, payload = replace(REQUEST, references=tuple(sizes)), b"".join(one.numpy().tobytes() for one in levels)
    expected = theirs(pipeline, request, image=[Image.fromarray(one.numpy()) for one in levels])
    ours = draw(klein, request=request, payload=payload)
    assert largest_difference(ours, expected) <= 1
    assert not torch.equal(ours, draw(klein, request=REQUEST))
    guided = replace(request, guidance=3.0)
    one_by_one = draw(klein, request=guided, payload=payload, plan=replace(STREAMED, guidance="sequential"))
    assert torch.equal(one_by_one, draw(klein, request=guided, payload=payload))


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.every(2)
def test_a_mask_goes_with_pictures_to_go_by(klein: Path, pipeline: Any, strength: float) -> None:
    """The library's pipeline always goes by the picture that it edits."""
    inpaint = Flux2KleinInpaintPipeline(**pipeline.components)
    inpaint.set_progress_bar_config(disable=True)
    request = replace(REQUEST, steps=4, strength=strength, masked=True, references=((96, 64),))
    rgb = torch.randint(256, (64, 96, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    mask = torch.zeros(64, 96, dtype=torch.uint8)
    mask[16:48, 32:80] = 255
    init, marks = rgb.numpy(), mask.numpy()
    given = {"image": Image.fromarray(init), "mask_image": Image.fromarray(marks), "strength": strength}
    ours = draw(klein, request=request, payload=init.tobytes() * 2 + marks.tobytes())
    assert largest_difference(ours, theirs(inpaint, request, **given)) <= 1
    assert largest_difference(ours, draw(klein, request=replace(request, masked=False), payload=init.tobytes() * 2)) > 1
    words_alone = replace(request, references=())
    without = draw(klein, request=words_alone, payload=init.tobytes() + marks.tobytes())
    outside = mask == 0
    only_through = draw(klein, request=replace(words_alone, masked=False, strength=0.0), payload=init.tobytes())
    changes = (without - only_through).abs().float()
    assert changes[~outside].mean() > 2 * changes[outside].mean()
