"""The fixed feature space in which a drawn object is compared with every glyph, and the colour of the background.

A picture is reduced to 64x64 cells by area. Features of an object are, inside its box and one cell around, the
difference of each cell from the background's colour, and twice the differences between neighbouring cells, across
and down (all RGB of 0…1). The nearest glyph is the one whose features, drawn in the same box on the colour asked
for, have the least squared distance.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from training.compose import Composer
from training.glyphs import Glyphs
from training.recipes import Recipe

CELLS = 64
RING = 6
"""Pixels along the edge of a picture that show its background, of 256."""

GRADIENT = 2.0


class Judge:
    """Ranks all glyphs by likeness with what a picture shows in a box."""

    def __init__(self, glyphs: Glyphs, palette: torch.Tensor, device: torch.device) -> None:
        self.concepts = len(glyphs)
        self.palette = palette.to(device)
        self.composer = Composer(glyphs.pixels, device, 2 * CELLS)
        self._layers: dict[tuple[float, ...], torch.Tensor] = {}

    def background(self, pictures: torch.Tensor) -> torch.Tensor:
        """(b, 3, s, s) of 0…1 to the median colour along the edge, (b, 3)."""
        width = max(1, RING * pictures.shape[-1] // 256)
        edge = [pictures[..., :width, :], pictures[..., -width:, :]]
        sides = [pictures[..., :, :width], pictures[..., :, -width:]]
        return torch.cat([part.flatten(2) for part in edge + sides], 2).median(2).values

    def colours(self, pictures: torch.Tensor) -> torch.Tensor:
        """(b, 3, s, s) of 0…1 to the number of the nearest named colour of each background, (b,)."""
        distances = (self.background(pictures)[:, None] - self.palette[None]).square().sum(2)
        return distances.argmin(1)

    def ranks(self, pictures: torch.Tensor, recipe: Recipe) -> torch.Tensor:
        """How many glyphs are nearer than the one asked for, (b, k) for pictures (b, 3, s, s); -1 for no object."""
        ranks = torch.full(recipe.objects.shape, -1)
        cells = F.interpolate(pictures.float(), size=(CELLS, CELLS), mode="area")
        backgrounds = self.background(pictures.float())
        for row, objects in enumerate(recipe.objects.tolist()):
            for place, wanted in enumerate(objects):
                if wanted < 0:
                    continue
                box = recipe.boxes[row, place]
                drawn = cells[row] - backgrounds[row][:, None, None]
                layers = self._glyphs_in(box)
                asked = recipe.background[row].to(layers.device)[:, None, None]
                references = layers[:, :3] - layers[:, 3:] * asked
                distances = (features(references, box) - features(drawn[None], box)).square().sum(1)
                ranks[row, place] = int((distances < distances[wanted]).sum())
        return ranks

    def _glyphs_in(self, box: torch.Tensor) -> torch.Tensor:
        """All glyphs in one box, premultiplied RGBA (concepts, 4, CELLS, CELLS); kept for the next picture."""
        key = tuple(round(value, 4) for value in box.tolist())
        if key not in self._layers:
            parts = torch.arange(self.concepts).split(64)
            drawn = [F.avg_pool2d(self.composer.layers(part, box), 2) for part in parts]
            self._layers[key] = torch.cat(drawn)
        return self._layers[key]


def features(differences: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """(b, 3, CELLS, CELLS) differences from the background to (b, n) features of the box (3,)."""
    x, y, side = (value * CELLS for value in box.tolist())
    left, top = max(0, int(x - side / 2) - 1), max(0, int(y - side / 2) - 1)
    right, bottom = min(CELLS, int(x + side / 2) + 2), min(CELLS, int(y + side / 2) + 2)
    window = differences[..., top:bottom, left:right]
    steps = [GRADIENT * window.diff(dim=-1), GRADIENT * window.diff(dim=-2)]
    return torch.cat([part.flatten(1) for part in (window, *steps)], 1)
