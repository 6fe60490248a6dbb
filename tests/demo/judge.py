"""Does a picture show what was asked for? The judge of training/measure.py, with a sheet of a few glyphs.

A scene is a prompt with what it means: which objects, in which boxes, on what colour. A verdict has the two answers
of training/measure.py, the glyph nearest to each object and the named colour nearest to the background, and two more
that a broken pipeline gives away even where those happen to be right: how unlike its glyph each object is, and how
uneven the background.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from training.compose import Composer
from training.measure import CELLS, Judge, features
from training.recipes import COLOUR_NAMES, MEDIUM, PLACES, SIZE_WORDS, Planner, Recipe, plain_caption
from training.references import NAMES, read_sheet

SHEET = Path(__file__).with_name("references.png")

UNLIKE_MOST = 0.7
"""Share of a glyph's features that a good drawing of it may miss; an empty box misses 1, another glyph more."""

UNEVEN_MOST = 10.0
"""Root mean square difference of the background from its own colour in a good picture, of 255."""


@dataclass(frozen=True)
class Scene:
    """One or two objects on a colour; `size` and `place` as training.recipes numbers them."""

    objects: tuple[str, ...]
    colour: str
    size: int = MEDIUM
    place: int = 0

    @property
    def prompt(self) -> str:
        """Its plainest caption."""
        return plain_caption(list(self.objects), self.colour, SIZE_WORDS[self.size][0], PLACES[self.place][0])

    @property
    def recipe(self) -> Recipe:
        """The same for a judge or a composer of the reference glyphs: a batch of this one scene."""
        first, second = [NAMES.index(name) for name in self.objects] + [-1] * (2 - len(self.objects))
        numbers = (first, second, COLOUR_NAMES.index(self.colour), self.size, self.place, False)
        return _planner().exactly(*(torch.tensor([number]) for number in numbers))


@dataclass(frozen=True)
class Verdict:
    """What one picture shows of a scene.

    `nearest` and `unlike`, an object each: the glyph that it is most like, and the squared distance of its features
    from those of the glyph asked for, in units of an empty box. `background` is a colour's name; `uneven` the root
    mean square difference of the picture outside all boxes from the background's colour, of 255.
    """

    scene: Scene
    nearest: tuple[str, ...]
    unlike: tuple[float, ...]
    background: str
    uneven: float

    @property
    def right(self) -> bool:
        """Whether the picture shows the scene."""
        shown = self.nearest == self.scene.objects and self.background == self.scene.colour
        return shown and max(self.unlike) <= UNLIKE_MOST and self.uneven <= UNEVEN_MOST


def judge(picture: torch.Tensor, scene: Scene) -> Verdict:
    """Compare a picture (s, s, 3) of 0…255 with a scene."""
    whole = picture.permute(2, 0, 1)[None].float() / 255
    recipe, experts = scene.recipe, _judge()
    ground = experts.background(whole)[0, :, None, None]
    drawn = F.interpolate(whole, size=(CELLS, CELLS), mode="area") - ground
    nearest, unlike, outside = [], [], torch.ones(CELLS, CELLS, dtype=torch.bool)
    for wanted, box in zip(recipe.objects[0].tolist(), recipe.boxes[0], strict=True):
        if wanted >= 0:
            glyphs = features(_on(box, recipe.background[0]), box)
            distances = (glyphs - features(drawn, box)).square().sum(1)
            nearest.append(NAMES[int(distances.argmin())])
            unlike.append(float(distances[wanted] / glyphs[wanted].square().sum()))
            outside &= ~_inside(box)
    pixels = F.interpolate(outside[None, None].float(), size=whole.shape[-2:])[0, 0].bool()
    uneven = 255 * float((whole[0] - ground)[:, pixels].square().mean().sqrt())
    return Verdict(scene, tuple(nearest), tuple(unlike), COLOUR_NAMES[int(experts.colours(whole)[0])], uneven)


def composed(scene: Scene, side: int = 256) -> torch.Tensor:
    """The scene as it would be with the very glyphs, (side, side, 3) of 0…255 as integers."""
    picture = Composer(read_sheet(SHEET).pixels, torch.device("cpu"), side)(scene.recipe)[0]
    return ((picture / 2 + 0.5) * 255).round().int().permute(1, 2, 0)


def _on(box: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Every reference glyph in a box on a colour, less that colour: (glyphs, 3, CELLS, CELLS)."""
    layers = _judge()._glyphs_in(box)
    return layers[:, :3] - layers[:, 3:] * colour[:, None, None]


def _inside(box: torch.Tensor, ring: float = 2.0) -> torch.Tensor:
    """The cells of a box and a ring about it, (CELLS, CELLS)."""
    x, y, side = box * CELLS
    centres = torch.arange(CELLS) + 0.5
    across, down = ((centres - at).abs() < side / 2 + ring for at in (x, y))
    return down[:, None] & across[None]


@functools.cache
def _judge() -> Judge:
    return Judge(read_sheet(SHEET), _planner().palette, torch.device("cpu"))


@functools.cache
def _planner() -> Planner:
    return Planner([[name] for name in NAMES])
