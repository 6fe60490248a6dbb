"""What the engine says and when, what it does with numbers that are none, and what it leaves in memory."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.devices import open_device
from sdcli.engine import denoise as denoise_stage
from sdcli.engine.generate import generate
from sdcli.engine.stage import is_finite
from sdcli.errors import NotFinite, NotFiniteInHalf, SdcliError
from sdcli.families.sd import network
from sdcli.messages import (
    Finished,
    LatentsDone,
    Message,
    Notice,
    PictureDone,
    StageBegan,
    StageEnded,
    StageLoaded,
    StepDone,
)
from sdcli.weights.lend import lend_weights
from tests.support import ASTRONAUT, RESIDENT, STREAMED, counted, job_of, pictures, run_engine

PIXELS = bytes(range(192)) * 64
SHORT = replace(ASTRONAUT, steps=2)


def told(events: list[Message]) -> list[str]:
    """The events in short."""
    return [f"{type(event).__name__} {getattr(event, 'name', '')}".strip() for event in events]


def stage(name: str, *within: str) -> list[str]:
    return [f"StageBegan {name}", f"StageLoaded {name}", *within, f"StageEnded {name}"]


def damaged(model: Path, home: Path, part: str, name: str, value: float = float("nan")) -> Path:
    """A copy of the model with one number of one tensor changed."""
    copy = home / "damaged"
    shutil.copytree(model, copy)
    (file,) = (copy / part).glob("*.safetensors")
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    return copy


def test_txt2img_tells_its_stages_in_order(tiny: Path) -> None:
    assert told(run_engine(tiny, replace(SHORT, count=2))) == [
        *stage("encode_prompt"),
        *stage("denoise", "StepDone", "StepDone", "StepDone", "StepDone"),
        *stage("decode", "PictureDone", "PictureDone"),
        "Finished",
    ]


def test_img2img_tells_its_stages_in_order(tiny: Path) -> None:
    events = run_engine(tiny, replace(SHORT, strength=0.5), payload=PIXELS)
    assert told(events) == [
        *stage("encode_prompt"),
        *stage("encode_image"),
        *stage("denoise", "StepDone"),
        *stage("decode", "PictureDone"),
        "Finished",
    ]


def test_a_picture_without_a_step_to_run_is_told_as_denoised(tiny: Path) -> None:
    events = run_engine(tiny, replace(SHORT, strength=0.0), payload=PIXELS)
    assert told(events)[6:9] == stage("denoise", "LatentsDone")[:3]
    (done,) = (event for event in events if isinstance(event, LatentsDone))
    job = job_of(tiny, SHORT, RESIDENT, "fp32", (len(done.payload),), done.payload, part="pictures")
    assert torch.equal(pictures(list(generate(job, open_device("cpu"))))[0], pictures(events)[0])


def test_events_say_what_was_done(tiny: Path) -> None:
    events = run_engine(tiny, replace(SHORT, count=2, width=72), STREAMED)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [(step.image, step.step, step.count) for step in steps] == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]
    assert all(step.seconds > 0 and step.bytes_read > 0 and step.payload for step in steps)
    assert len({step.bytes_read for step in steps}) == 1
    drawn = [event for event in events if isinstance(event, PictureDone)]
    assert [(picture.image, picture.seed) for picture in drawn] == [(0, SHORT.seed), (1, SHORT.seed + 1)]
    assert all((picture.width, picture.height) == (72, 64) for picture in drawn)
    assert all(len(picture.payload) == 72 * 64 * 3 for picture in drawn)
    for event in events:
        assert not isinstance(event, StageLoaded) or event.load_s >= 0
        assert not isinstance(event, StageEnded) or (event.run_s >= 0 and event.device_peak_bytes == 0)


def test_resident_weights_are_not_read_again(tiny: Path) -> None:
    assert {event.bytes_read for event in run_engine(tiny, SHORT) if isinstance(event, StepDone)} == {0}


@pytest.mark.parametrize("count", [1, 3])
def test_every_component_is_loaded_once_whatever_the_count(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    loads: list[str] = []

    def noted(module: Any, component: Any, *arguments: Any, **options: Any) -> Any:
        loads.append(component.name)
        return lend_weights(module, component, *arguments, **options)

    monkeypatch.setattr("sdcli.weights.borrow.lend_weights", noted)
    run_engine(tiny, replace(SHORT, count=count, strength=1.0), payload=PIXELS)
    assert loads == ["text_encoder", "vae", "unet", "vae"]


# Notices


def test_words_that_are_left_out_are_told(tiny: Path) -> None:
    request = replace(SHORT, prompt="a " * 607, negative="b " * 601)
    notices = [event.what for event in run_engine(tiny, request) if isinstance(event, Notice)]
    assert notices == [
        "the negative prompt is too long: its last 1 tokens are left out",
        "the prompt is too long: its last 7 tokens are left out",
    ]


def test_without_guidance_only_the_prompt_is_told_of(tiny: Path) -> None:
    request = replace(SHORT, prompt="a " * 607, negative="b " * 601, guidance=1.0)
    (notice,) = (event.what for event in run_engine(tiny, request) if isinstance(event, Notice))
    assert notice.startswith("the prompt")


def test_600_tokens_are_no_news(tiny: Path) -> None:
    events = run_engine(tiny, replace(SHORT, prompt="a " * 600))
    assert not any(isinstance(event, Notice) for event in events)
    assert isinstance(events[-1], Finished)


# Numbers that are none


def spoil_decodes(monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[int, torch.dtype], bool]) -> None:
    """Put NaN into the decodes for which `spoiled` says so, by their number and type."""
    borrow, number = network.borrow_decoder, iter(range(100))

    @contextmanager
    def borrowed(component: Any, given: Any) -> Iterator[Any]:
        with borrow(component, given) as run:

            def decode(latents: torch.Tensor) -> torch.Tensor:
                pixels: torch.Tensor = run(latents)
                if spoiled(next(number), given.dtype):
                    pixels[0, 1, 2, 3] = torch.nan
                return pixels

            yield decode

    monkeypatch.setattr(network, "borrow_decoder", borrowed)


def test_a_decode_that_is_not_finite_is_an_error_when_the_others_are_there(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(SHORT, count=3)
    device = open_device("cpu")
    for dtype, kind in (("bf16", NotFiniteInHalf), ("fp32", NotFinite)):
        job = job_of(tiny, request, RESIDENT, dtype)  # type: ignore[arg-type]
        spoil_decodes(monkeypatch, lambda number, dtype: number == 1)
        events: list[Message] = []
        with pytest.raises(NotFinite, match="stage decode") as caught:
            for event in generate(job, device):
                events.append(event)  # noqa: PERF402  what came before the error is kept
        assert type(caught.value) is kind
        assert [event.image for event in events if isinstance(event, PictureDone)] == [0, 2]


def test_pictures_alone_are_drawn_of_the_images_whose_latents_are_handed_over(tiny: Path) -> None:
    request = replace(SHORT, count=3)
    events = run_engine(tiny, request)
    done = {event.image: event.payload for event in events if isinstance(event, StepDone) and event.step == event.count}
    job = job_of(tiny, request, RESIDENT, "fp32", (len(done[0]), len(done[2])), done[0] + done[2], part="pictures")
    again = [event for event in generate(job, open_device("cpu")) if isinstance(event, PictureDone)]
    drawn = {event.image: event for event in events if isinstance(event, PictureDone)}
    assert sorted(done) == [0, 1, 2] and [(one.image, one.seed) for one in again] == [(0, 1234), (2, 1236)]
    assert all(one.payload == drawn[one.image].payload for one in again)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("part", "name", "where"),
    [
        ("text_encoder", "final_layer_norm.weight", "encode_prompt"),
        ("unet", "conv_out.bias", "denoise"),
        ("unet", "mid_block.resnets.0.conv1.weight", "denoise"),
        ("vae", "encoder.conv_out.bias", "encode_image"),
    ],
)
def test_weights_that_are_not_finite_end_the_run_in_their_stage(
    tiny: Path, tmp_path: Path, part: str, name: str, where: str, value: float
) -> None:
    model = damaged(tiny, tmp_path, part, name, value)
    with pytest.raises(NotFinite, match=f"NaN or infinity came out of the stage {where}: ") as caught:
        run_engine(model, replace(SHORT, strength=1.0), payload=PIXELS)
    assert caught.value.exit_code == 5


class Spoiling:
    """A scheduler that puts NaN into what it hands back."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def step(self, output: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, **options: Any) -> Any:
        done = self._scheduler.step(output, timestep, latents, **options)
        done.prev_sample[0, 0, 0, 0] = torch.nan
        return done


def test_who_made_the_numbers_that_are_none_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for guidance, words in ((1e40, "step 1 of the stage denoise: a --guidance that is too high"), (1e30, "grown to")):
        with pytest.raises(NotFinite, match=words) as caught:
            run_engine(tiny, replace(SHORT, guidance=guidance), dtype="bf16")
        assert type(caught.value) is NotFinite, "another type would not help"
    build = denoise_stage.build_scheduler
    monkeypatch.setattr(denoise_stage, "build_scheduler", lambda *asked: Spoiling(build(*asked)))
    with pytest.raises(NotFinite, match="step 1 of the stage denoise: the scheduler's settings made them") as caught:
        run_engine(tiny, SHORT, dtype="bf16")
    assert type(caught.value) is NotFinite


def test_a_deviation_that_is_not_finite_is_found_though_the_mean_is_whole(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(tiny, copy)
    (file,) = (copy / "vae").glob("*.safetensors")
    tensors = load_file(file)
    tensors["quant_conv.bias"][-1] = torch.nan  # the last channels are the logarithm of the variance
    file.unlink()
    save_file(tensors, file)
    with pytest.raises(NotFinite, match="encode_image"):
        run_engine(copy, replace(SHORT, strength=1.0), payload=PIXELS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_none_is_enough(value: float) -> None:
    values = torch.zeros(2, 3)
    assert is_finite(values)
    values[1, 2] = value
    assert not is_finite(values)


def test_a_decoder_that_is_not_there_is_found_before_anything_is_drawn(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "half"
    shutil.copytree(tiny, copy)
    (file,) = (copy / "vae").glob("*.safetensors")
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "decoder.conv_in.bias"}, file)
    with pytest.raises(SdcliError, match=r"lacks the tensors 'decoder\.conv_in\.bias'"):
        counted(copy, SHORT)


# Memory between stages


def tensor_bytes() -> dict[int, int]:
    """Bytes of every storage that a Python tensor holds, without collecting garbage first."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.parametrize("plan", [RESIDENT, STREAMED], ids=["resident", "streamed"])
def test_when_a_stage_has_ended_its_weights_and_its_scratch_are_gone(tiny: Path, plan: Any) -> None:
    request = replace(SHORT, width=256, height=192, strength=1.0)
    before, left = tensor_bytes(), {}
    gc.disable()  # only what the engine collects itself counts
    try:
        job = job_of(tiny, request, plan, "fp32", (), bytes(256 * 192 * 3))
        for event in generate(job, open_device("cpu")):
            if isinstance(event, StageEnded):
                left[event.name] = sum(size for place, size in tensor_bytes().items() if place not in before)
    finally:
        gc.enable()
    pixels = 256 * 192 * 3 * 4
    latents = 4 * 32 * 24 * 4
    assert list(left) == ["encode_prompt", "encode_image", "denoise", "decode"]
    for name, size in left.items():
        assert size <= pixels + 40 * latents, (name, size)


# Jobs


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(20, 1.0, 20), (20, 0.5, 10), (20, 0.04, 1), (20, 0.0, 0), (3, 0.99, 2), (1, 0.01, 1), (1000, 0.3, 300)],
)
def test_strength_is_the_share_of_steps_that_run(steps: int, strength: float, run: int) -> None:
    assert replace(ASTRONAUT, steps=steps, strength=strength).steps_run == run


def test_checkpoints_of_several_images_are_told_apart(tiny: Path) -> None:
    request = replace(SHORT, count=3, strength=1.0)
    events = run_engine(tiny, request, payload=PIXELS)
    steps = {(event.image, event.step): event.payload for event in events if isinstance(event, StepDone)}
    kept = [steps[0, 2], steps[1, 1]]
    resumed = run_engine(tiny, request, payload=PIXELS + b"".join(kept), checkpoints=tuple(map(len, kept)))
    ran = [(event.image, event.step) for event in resumed if isinstance(event, StepDone)]
    assert ran == [(1, 2), (2, 1), (2, 2)]
    for one, other in zip(pictures(events), pictures(resumed), strict=True):
        assert torch.equal(one, other)


def test_a_caller_who_stops_listening_frees_everything(tiny: Path) -> None:
    events = generate(job_of(tiny, SHORT, RESIDENT), open_device("cpu"))
    before = tensor_bytes()
    for event in events:
        if isinstance(event, StepDone):
            break
    events.close()  # type: ignore[attr-defined]
    gc.collect()
    assert sum(size for place, size in tensor_bytes().items() if place not in before) < 100_000
    assert not torch.is_inference_mode_enabled()


def test_a_model_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SdcliError, match="No such file or directory"):
        run_engine(tmp_path / "gone")


def test_a_stage_begins_before_its_work(tiny: Path) -> None:
    events = generate(job_of(tiny, SHORT, RESIDENT), open_device("cpu"))
    assert next(events) == StageBegan("encode_prompt")
