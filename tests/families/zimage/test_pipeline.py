"""A tiny Z-Image draws what diffusers' pipelines draw, under every plan with the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image_img2img import ZImageImg2ImgPipeline
from diffusers.pipelines.z_image.pipeline_z_image_inpaint import ZImageInpaintPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from sdcli.domain import Request
from sdcli.engine.synthesize import write_model
from sdcli.families.zimage.transformer import Pass
from sdcli.messages import StepDone
from sdcli.weights.source import Stored
from tests import qwen
from tests.families.zimage.tiny import FOX, TINY
from tests.support import RESIDENT, STREAMED, draw, largest_difference, pictures, psnr, run_engine

MASK = torch.zeros(64, 96, dtype=torch.uint8)
MASK[8:40, 32:80] = 255
PIXELS = torch.arange(64 * 96 * 3).mul(7919).remainder(251).to(torch.uint8)


def parts(folder: Path) -> dict[str, Any]:
    """The model's parts as the libraries open them, in FP32."""
    options: dict[str, Any] = {"local_files_only": True}
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", **options)
    tokenizer.chat_template = qwen.TEMPLATE
    opened = {
        "text_encoder": Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", dtype=torch.float32, **options),
        "transformer": ZImageTransformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=torch.float32, **options
        ),
        "vae": AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, **options),
    }
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler", **options)
    return {"tokenizer": tokenizer, "scheduler": scheduler, **{name: part.eval() for name, part in opened.items()}}


def drawn_by_diffusers(folder: Path, request: Request) -> torch.Tensor:
    """The library's guidance of g is ours of g + 1."""
    kind: Any = ZImagePipeline if request.strength is None else ZImageImg2ImgPipeline
    given: dict[str, Any] = {}
    if request.strength is not None:
        image = PIXELS.view(request.height, request.width, 3).permute(2, 0, 1)[None].float() / 255
        given = {"image": image, "strength": request.strength}
    if request.masked:
        kind, given["mask_image"] = ZImageInpaintPipeline, Image.fromarray(MASK.numpy())
    pipeline = kind(**parts(folder))
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        request.prompt,
        negative_prompt=request.negative,
        height=request.height,
        width=request.width,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance - 1,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="np",
        **given,
    ).images[0]
    return torch.from_numpy(made * 255).round().int()


def ours(folder: Path, request: Request, **options: Any) -> torch.Tensor:
    return draw(folder, request=request, payload=payload(request), **options)


def payload(request: Request) -> bytes:
    mask = MASK.numpy().tobytes() if request.masked else b""
    return b"" if request.strength is None else PIXELS.numpy().tobytes() + mask


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"prompt": "", "steps": 1},
        {"guidance": 5.0},
        {"guidance": 3.0, "negative": "", "prompt": "a long story of a fox " * 12},
        {"width": 64, "steps": 8},
        {"strength": 0.5},
        {"strength": 1.0, "guidance": 2.5},
    ],
    ids=repr,
)
@pytest.mark.every(7)
def test_pictures_are_the_library_s(model: Path, change: dict[str, Any]) -> None:
    request = replace(FOX, **change)
    assert largest_difference(ours(model, request), drawn_by_diffusers(model, request)) <= 1


MASKED = replace(FOX, height=64, width=96, strength=0.6, steps=5, masked=True)


@pytest.mark.every(4)
@pytest.mark.parametrize("change", [{}, {"strength": 1.0}, {"guidance": 3.0}, {"strength": 0.2}], ids=repr)
def test_so_are_those_drawn_within_a_mask(model: Path, change: dict[str, Any]) -> None:
    request = replace(MASKED, **change)
    drawn = ours(model, request)
    assert largest_difference(drawn, drawn_by_diffusers(model, request)) <= 1
    assert largest_difference(drawn, ours(model, replace(request, masked=False))) > 1


def test_a_run_with_a_mask_goes_on_from_any_step(model: Path) -> None:
    request = replace(MASKED, count=2)
    events = run_engine(model, request, payload=payload(request))
    whole = pictures(events)
    steps = [event.payload for event in events if isinstance(event, StepDone) and event.image == 1]
    for blob in (steps[0], steps[-1]):
        resumed = run_engine(model, request, payload=payload(request) + blob, checkpoints=(len(blob),))
        assert all(torch.equal(*pair) for pair in zip(pictures(resumed), whole, strict=True))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_every_plan_draws_the_same_bits(model: Path, guidance: float) -> None:
    request = replace(FOX, guidance=guidance)
    first = ours(model, request)
    for plan in (
        STREAMED,
        replace(RESIDENT, guidance="sequential", give_back="piece"),
        replace(STREAMED, guidance="sequential", give_back="block", ways={"decode": "recomputed"}),
    ):
        assert torch.equal(ours(model, request, plan=plan), first)


@pytest.mark.full
def test_bf16_weights_are_used_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bf16"
    folder.mkdir()
    for _ in write_model({**TINY, "dtype": "BF16"}, folder):
        pass
    plans = (RESIDENT, STREAMED, replace(STREAMED, guidance="sequential", give_back="piece"))
    request = replace(FOX, guidance=3.0)
    lying = [ours(folder, request, plan=plan, dtype="bf16") for plan in plans]
    assert all(torch.equal(one, lying[0]) for one in lying)
    exact = ours(folder, request)
    assert psnr(lying[0], exact) > 30
    copies: list[int] = []
    monkeypatch.setattr(Stored, "slice_of", lambda *_: copies.append(1))
    assert torch.equal(ours(folder, request, dtype="bf16"), lying[0]) and not copies


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_words_are_refined_once_for_all_steps_and_pictures(
    model: Path, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """What the words become depends on no time."""
    request, refine = replace(FOX, steps=3, count=2, guidance=guidance), Pass.refined
    once = ours(model, request)
    done: list[int] = []

    def noted(self: Pass, words: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        done.append(len(words))
        return refine(self, words, turns)

    monkeypatch.setattr(Pass, "refined", noted)
    for plan in (RESIDENT, replace(STREAMED, guidance="sequential")):
        done.clear()
        assert torch.equal(ours(model, request, plan=plan), once) and len(done) == (2 if request.guided else 1)
    monkeypatch.setattr("sdcli.families.zimage.denoiser.PROMPTS", 0)
    done.clear()
    assert torch.equal(ours(model, request), once) and len(done) == 2 * 3 * (2 if request.guided else 1)
