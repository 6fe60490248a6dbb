"""The built-in model draws what its prompt says, and a pipeline that is broken anywhere does not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdcli import machine
from sdcli.domain import Component, Request
from sdcli.engine import decode, denoise
from sdcli.errors import NotFinite
from sdcli.families.sd import network
from sdcli.models import reference
from tests.demo.judge import Scene, composed, judge
from tests.demo.textbook import draw_by_the_book
from tests.support import STREAMED, draw, largest_difference, psnr
from training.glyphs import Glyphs
from training.recipes import LARGE, PLACES, SMALL
from training.references import NAMES, SIDE, draw_sheet, read_sheet

MODEL = Path(reference.__file__).parent / reference.DEMO

DTYPE, _ = machine.choose_dtype("cpu", "auto")

LEFT, CORNER = (next(i for i, place in enumerate(PLACES) if words in place[0]) for words in ("left", "bottom right"))

FOX = Scene(("fox",), "blue")
SCENES = (
    FOX,
    Scene(("airplane",), "yellow", SMALL),
    Scene(("sunflower",), "pink", LARGE),
    Scene(("octopus",), "black", place=CORNER),
    Scene(("cat", "dog"), "green"),
    Scene(("star", "red apple"), "gray"),
)
"""Fox on blue, sunflower on pink and star with apple were held out of the training."""

SABOTAGED = SCENES[::4]
"""One object and two; by hand, all six scenes are wrong with every visible sabotage, four seeds each."""

PICTURE = Request("", "", 256, 256, 20, 7.5, 0, 1)
"""As the command line has it, but for the seed."""

HURRY: dict[str, Any] = {"steps": 6, "guidance": 5.0}
"""Enough for every scene to be right."""

LITTLE = replace(PICTURE, prompt=FOX.prompt, width=128, height=128, steps=2)
"""Enough for a schedule to go wrong."""

DOG = Scene(("dog",), "red")
NOT_THE_DOG: dict[str, Any] = {"negative": DOG.prompt, "guidance": 2.0, "steps": 6}
"""A negative prompt that says as much as the prompt: stronger guidance away from it would change the colours."""

BOOK_FLOOR_DB = 60.0
"""Of the engine in FP32 against the formulas in FP32: measured 83 to 88 dB; with a subtle sabotage 38 dB at most."""


def ask(scene: Scene, **options: Any) -> torch.Tensor:
    """A picture of a scene, drawn by the engine in this process."""
    return draw(MODEL, request=replace(PICTURE, prompt=scene.prompt, **options), dtype=DTYPE)


def edit(picture: torch.Tensor, prompt: str, strength: float) -> torch.Tensor:
    """img2img from a picture, with a seed that it was not drawn with."""
    request = replace(PICTURE, prompt=prompt, strength=strength, seed=100)
    return draw(MODEL, request=request, dtype=DTYPE, payload=picture.to(torch.uint8).numpy().tobytes())


@functools.cache
def drawn(scene: Scene) -> torch.Tensor:
    """The picture of a scene, drawn once for all tests."""
    return ask(scene)


@functools.cache
def hurried(scene: Scene) -> torch.Tensor:
    """The picture of a scene in few steps, drawn once for all tests."""
    return ask(scene, **HURRY)


# The judge


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.prompt)
def test_the_judge_knows_a_scene_composed_of_the_glyphs_from_every_other(scene: Scene) -> None:
    picture = composed(scene)
    verdict = judge(picture, scene)
    assert verdict.right and max(verdict.unlike) < 0.05 and verdict.uneven < 1
    for other in SCENES:
        assert judge(picture, other).right == (other == scene)


def test_the_judge_refuses_an_empty_background_noise_and_other_colours() -> None:
    empty = composed(FOX)[:1, :1].expand(256, 256, 3)
    noise = torch.randint(0, 256, (256, 256, 3), generator=torch.Generator().manual_seed(0))
    rough = (composed(FOX) + (noise - 128) // 3).clamp(0, 255)
    assert not any(judge(picture, FOX).right for picture in (empty, noise, rough, composed(replace(FOX, colour="red"))))
    assert judge(rough, FOX).nearest == ("fox",) and judge(rough, FOX).background == "blue"


def test_a_sheet_of_references_is_read_as_it_was_drawn(tmp_path: Path) -> None:
    tints = np.random.default_rng(0).integers(0, 256, (len(NAMES), 1, 1, 4), np.uint8)
    tints[..., 3] = 255
    glyphs = Glyphs(np.tile(tints, (1, 2 * SIDE, 2 * SIDE, 1))[::-1], [[name, "alias"] for name in NAMES][::-1])
    draw_sheet(glyphs).save(tmp_path / "sheet.png")
    sheet = read_sheet(tmp_path / "sheet.png")
    assert sheet.pixels.shape == (len(NAMES), SIDE, SIDE, 4) and [name for (name,) in sheet.names] == list(NAMES)
    assert (sheet.pixels == tints).all()


# txt2img


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.prompt)
@pytest.mark.every(6)
def test_the_picture_shows_what_the_prompt_says(scene: Scene) -> None:
    verdict = judge(drawn(scene), scene)
    assert verdict.right, verdict


@pytest.mark.full
def test_streaming_the_weights_draws_the_same_picture() -> None:
    request = replace(PICTURE, prompt=FOX.prompt, **HURRY)
    streamed = draw(MODEL, request=request, dtype=DTYPE, plan=STREAMED)
    assert largest_difference(streamed, hurried(FOX)) <= 1


def test_the_negative_prompt_is_not_what_is_drawn() -> None:
    verdict = judge(ask(FOX, **NOT_THE_DOG), FOX)
    assert verdict.right, verdict


# img2img


@pytest.mark.full
def test_img2img_gives_a_drawn_fox_another_background_and_leaves_it_where_it_is() -> None:
    red = replace(FOX, colour="red")
    verdict = judge(edit(drawn(FOX), red.prompt, 0.6), red)
    assert verdict.right, verdict


@pytest.mark.full
def test_what_a_prompt_leaves_open_img2img_takes_from_the_picture() -> None:
    verdict = judge(edit(drawn(FOX), "a fox", 0.6), FOX)
    assert verdict.right, verdict


@pytest.mark.full
def test_img2img_of_little_strength_keeps_what_the_picture_has() -> None:
    left = replace(FOX, place=LEFT)
    picture = ask(left, **HURRY)
    kept = judge(edit(picture, replace(FOX, colour="red").prompt, 0.1), left)
    assert kept.right, kept


# Broken pipelines


@contextmanager
def replaced(owner: object, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """For a while, what `make` makes of a function in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, make(getattr(owner, name)))
        yield


def with_settings(component: Component, **settings: Any) -> Component:
    """The component with other settings; one of None is lost."""
    config = {key: value for key, value in (component.config | settings).items() if value is not None}
    return replace(component, config=config)


def other_schedule(**settings: Any) -> AbstractContextManager[None]:
    return replaced(
        denoise,
        "build_scheduler",
        lambda real: lambda scheduler, *times: real(with_settings(scheduler, **settings), *times),
    )


def louder_noise(factor: float) -> AbstractContextManager[None]:
    return replaced(denoise, "_noise", lambda real: lambda *args: real(*args) * factor)


def swapped_guidance() -> AbstractContextManager[None]:
    return replaced(denoise, "_guided", lambda real: lambda told, guidance: real(told[::-1], guidance))


def swapped_prompts() -> AbstractContextManager[None]:
    def swap(request: Request) -> Request:
        return replace(request, prompt=request.negative, negative=request.prompt)

    return replaced(
        network, "encode_prompt", lambda real: lambda model, request, given: real(model, swap(request), given)
    )


def unscaled_latents() -> AbstractContextManager[None]:
    def break_it(borrow: Callable[..., Any]) -> Callable[..., Any]:
        return lambda vae, *rest, **named: borrow(with_settings(vae, scaling_factor=1.0), *rest, **named)

    return replaced(network, "borrow_decoder", break_it)


def swapped_channels() -> AbstractContextManager[None]:
    return replaced(decode, "_picture", lambda real: lambda image, seed, pixels: real(image, seed, pixels.flip(1)))


LOST = {"prediction_type": None, "rescale_betas_zero_snr": None, "timestep_spacing": None}
"""Settings of the scheduler without which it is that of Stable Diffusion 1.5."""

VISIBLE: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "the schedule of Stable Diffusion 1.5": lambda: other_schedule(**LOST),
    "conditional and unconditional exchanged": swapped_guidance,
    "latents not unscaled": unscaled_latents,
    "red and blue exchanged": swapped_channels,
}

SUBTLE: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "half the noise": lambda: louder_noise(0.5),
    "noise and a half": lambda: louder_noise(1.5),
    "no zero terminal SNR": lambda: other_schedule(rescale_betas_zero_snr=None),
    "leading timesteps": lambda: other_schedule(timestep_spacing=None),
}
"""What the judge does not see: a prompt says all that there is to a scene, so the model makes good for a schedule that
is somewhat off. Measured with six seeds a scene: every picture right. So a picture by the book is compared with."""


@pytest.mark.parametrize("scene", SABOTAGED, ids=lambda scene: scene.prompt)
def test_a_few_steps_are_enough_for_the_right_picture(scene: Scene) -> None:
    verdict = judge(hurried(scene), scene)
    assert verdict.right, verdict


@pytest.mark.every(2)
@pytest.mark.parametrize("sabotage", VISIBLE)
def test_every_picture_of_a_broken_pipeline_is_wrong(sabotage: str) -> None:
    for scene in SABOTAGED:
        with VISIBLE[sabotage]():
            verdict = judge(ask(scene, **HURRY), scene)
        assert not verdict.right, verdict


def test_noise_predicted_at_zero_terminal_snr_is_no_picture_at_all() -> None:
    with other_schedule(prediction_type="epsilon"), pytest.raises(NotFinite, match="stage denoise"):
        ask(FOX, steps=1)


def test_with_prompt_and_negative_prompt_exchanged_the_other_one_is_drawn() -> None:
    with swapped_prompts():
        picture = ask(FOX, **NOT_THE_DOG)
    verdict = judge(picture, DOG)
    assert not judge(picture, FOX).right and (verdict.nearest, verdict.background) == (DOG.objects, DOG.colour)


@functools.cache
def by_the_book() -> torch.Tensor:
    """The little picture by formulas of our own."""
    return draw_by_the_book(MODEL, LITTLE)


def likeness() -> float:
    """Of the engine's little picture in FP32 with that one, in dB."""
    return psnr(draw(MODEL, request=LITTLE), by_the_book())


def test_the_engine_draws_what_the_formulas_of_the_papers_draw() -> None:
    assert likeness() >= BOOK_FLOOR_DB


@pytest.mark.parametrize("sabotage", SUBTLE)
def test_a_schedule_that_is_off_is_not_by_the_book(sabotage: str) -> None:
    with SUBTLE[sabotage]():
        assert likeness() < BOOK_FLOOR_DB - 15
