"""Pixels of composed scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.compose import Composer, psnr
from training.glyphs import Glyphs
from training.recipes import LARGE, MEDIUM, SMALL, Planner, Recipe

CPU = torch.device("cpu")


def one(planner: Planner, size: int = MEDIUM, place: int = 0, second: int = -1, above: bool = False) -> Recipe:
    rows = [torch.tensor([value]) for value in (0, second, 5, size, place)]
    return planner.exactly(*rows, torch.tensor([above]))


@pytest.fixture(scope="module")
def planner(glyphs: Glyphs) -> Planner:
    return Planner(glyphs.names)


def solid(concepts: int = 12) -> np.ndarray:
    """Opaque white squares."""
    return np.full((concepts, 64, 64, 4), 255, np.uint8)


@pytest.mark.parametrize("size", [SMALL, MEDIUM, LARGE])
def test_an_object_fills_its_box_and_nothing_else(planner: Planner, size: int) -> None:
    recipe = one(planner, size)
    scene = Composer(solid(), CPU, 128)(recipe)[0]
    side = float(recipe.boxes[0, 0, 2])
    white = (scene > 0.2).all(0).float().mean()
    assert white == pytest.approx(side**2, abs=0.03)
    assert torch.allclose(scene[:, 0, 0] / 2 + 0.5, recipe.background[0], atol=1e-5)


@pytest.mark.parametrize(("place", "corner"), [(5, (0, 0)), (6, (0, 1)), (7, (1, 0)), (8, (1, 1))])
def test_an_object_is_in_its_corner(planner: Planner, place: int, corner: tuple[int, int]) -> None:
    scene = Composer(solid(), CPU, 64)(one(planner, SMALL, place))[0]
    quarters = (scene > 0.99).all(0).unflatten(0, (2, 32)).unflatten(2, (2, 32)).float().mean((1, 3))
    assert divmod(int(quarters.argmax()), 2) == corner


@pytest.mark.parametrize("above", [False, True])
def test_the_first_of_two_is_on_the_left_or_above(planner: Planner, above: bool) -> None:
    pixels = solid()
    pixels[0, ..., 1:3] = 0  # red
    scene = Composer(pixels, CPU, 64)(one(planner, second=1, above=above))[0] / 2 + 0.5
    red, white = ((scene[0] > 0.9) & (scene[1] < 0.1)).nonzero(), (scene > 0.99).all(0).nonzero()
    axis = 0 if above else 1
    assert red[:, axis].max() < white[:, axis].min()


def test_colours_stay_in_range_and_edges_are_not_dark(planner: Planner, glyphs: Glyphs) -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = Composer(glyphs.pixels, CPU, 64)(planner.scatter(8, generator))
    assert scenes.min() >= -1 and scenes.max() <= 1
    pixels = solid()
    pixels[:, :8, :, :] = 0  # clear black: it must not bleed into what is beside it
    recipe = one(planner)
    on_white = Recipe(
        **{**{name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}, "background": torch.ones(1, 3)}
    )
    assert Composer(pixels, CPU, 64)(on_white).min() > 0.99


def test_small_glyphs_are_averages_not_samples(planner: Planner) -> None:
    pixels = solid()
    pixels[0, ::2, :, :3] = 0  # stripes of one pixel
    scene = Composer(pixels, CPU, 32)(one(planner, SMALL))[0] / 2 + 0.5
    inside = scene[:, 13:19, 13:19]
    assert inside.std() < 0.1 and inside.mean() == pytest.approx(0.5, abs=0.1)


def test_a_scene_alone_is_the_scene_in_a_batch(planner: Planner, glyphs: Glyphs) -> None:
    recipe = planner.draw(6, torch.Generator().manual_seed(3))
    composer = Composer(glyphs.pixels, CPU, 64)
    together = composer(recipe)
    for row in range(6):
        parts = {name: getattr(recipe, name)[row : row + 1] for name in Recipe.__dataclass_fields__}
        assert torch.allclose(composer(Recipe(**parts))[0], together[row], atol=1e-5)


def test_psnr_of_a_known_error() -> None:
    wanted = torch.zeros(1, 3, 4, 4)
    assert float(psnr(wanted + 0.02, wanted)) == pytest.approx(40.0, abs=1e-3)
