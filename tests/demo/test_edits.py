"""The built-in model puts another object into a picture's mask, and what is outside stays as it is, bit for bit.

Judged by the two answers of training/measure.py. Of the 24 edits 21 are good likenesses besides; a canoe on orange and
a star on yellow are none when they are drawn from words either.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdcli.images.read import Edit, read_init
from tests.demo.judge import UNEVEN_MOST, Scene, composed, judge
from tests.demo.test_pictures import DTYPE, HURRY, MODEL, PICTURE
from tests.support import draw
from training.recipes import COLOUR_NAMES, LARGE, MEDIUM, SMALL
from training.references import NAMES

SIDE = 256
AROUND = 8
"""Pixels of background that the mask takes with the object."""

BLUR = 2

AT_ONCE = 3
"""Edits that every run of the tests makes."""


def scene(number: int) -> Scene:
    """One with the glyph of that number, every third time as the second of two."""
    size = (SMALL, MEDIUM, LARGE)[number % 2 + number % 3 // 2]
    colour = COLOUR_NAMES[number % len(COLOUR_NAMES)]
    if number % 3 == 2:
        return Scene((NAMES[number - 8], NAMES[number]), colour)
    return Scene((NAMES[number],), colour, size)


def mask_of(before: Scene) -> Image.Image:
    """White where its last object is."""
    x, y, side = (float(value) * SIDE for value in before.recipe.boxes[0][len(before.objects) - 1])
    reach = side / 2 + AROUND
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (round(x - reach), round(y - reach), round(x + reach), round(y + reach)))
    return mask


@pytest.mark.every(3)
@pytest.mark.parametrize(
    "number", [n if n < AT_ONCE else pytest.param(n, marks=pytest.mark.full) for n in range(len(NAMES))]
)
def test_an_object_gives_way_to_another(tmp_path: Path, number: int) -> None:
    before = scene(number)
    after = replace(before, objects=(*before.objects[:-1], NAMES[(number + 7) % len(NAMES)]))
    picture = composed(before, SIDE)
    Image.fromarray(picture.numpy().astype(np.uint8)).save(tmp_path / "init.png")
    mask_of(before).save(tmp_path / "mask.png")
    init = read_init(tmp_path / "init.png", None, None, Edit(mask=str(tmp_path / "mask.png"), blur=BLUR))
    assert init.canvas is not None
    request = replace(PICTURE, prompt=after.prompt, strength=1.0, masked=True, **HURRY)
    drawn = draw(MODEL, request=request, dtype=DTYPE, payload=init.pixels + init.mask)
    whole = init.canvas.with_drawn(drawn.to(torch.uint8).numpy().tobytes(), SIDE, SIDE)
    edited = torch.frombuffer(bytearray(whole), dtype=torch.uint8).view(SIDE, SIDE, 3).int()
    outside = torch.frombuffer(bytearray(init.canvas.share), dtype=torch.uint8).view(SIDE, SIDE) == 0
    assert torch.equal(edited[outside], picture[outside].int())
    verdict = judge(edited, after)
    assert (verdict.nearest, verdict.background) == (after.objects, after.colour), verdict
    assert verdict.uneven <= UNEVEN_MOST and judge(edited, before).nearest != before.objects, verdict
