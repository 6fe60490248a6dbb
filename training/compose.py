"""Recipes to pictures, whole batches at once on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from training.recipes import Recipe


class Composer:
    """Draws scenes of `side` x `side` pixels from glyphs (concepts, s, s, 4) uint8, alpha not premultiplied."""

    def __init__(self, pixels: np.ndarray, device: torch.device, side: int = 256) -> None:
        self.device, self.side = device, side
        finest = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2).float() / 255
        finest[:, :3] *= finest[:, 3:]
        self.levels = [finest.contiguous()]
        while self.levels[-1].shape[-1] > 8:
            self.levels.append(F.avg_pool2d(self.levels[-1], 2))

    def __call__(self, recipe: Recipe) -> torch.Tensor:
        """(scenes, 3, side, side) in -1…1: the background, and on it the objects in their order."""
        colour = recipe.background.to(self.device, non_blocking=True)
        scene = colour[:, :, None, None].expand(-1, -1, self.side, self.side).contiguous()
        for layer in range(recipe.objects.shape[1]):
            chosen, boxes = recipe.objects[:, layer], recipe.boxes[:, layer]
            level = self._level(boxes[:, 2])
            for number in level[chosen >= 0].unique().tolist():
                rows = ((chosen >= 0) & (level == number)).nonzero()[:, 0]
                placed = self._placed(self.levels[number], chosen[rows], boxes[rows])
                rows = rows.to(self.device, non_blocking=True)
                scene[rows] = scene[rows] * (1 - placed[:, 3:]) + placed[:, :3]
        return scene * 2 - 1

    def layers(self, concepts: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
        """Glyphs alone, premultiplied RGBA of 0…1: (concepts, 4, side, side), all in one `box` (3,)."""
        level = int(self._level(box[2:])[0])
        return self._placed(self.levels[level], concepts, box.expand(len(concepts), 3))

    def _level(self, sides: torch.Tensor) -> torch.Tensor:
        """Which halving of the glyphs to sample for boxes of these sides: never less than half of its pixels."""
        shrunk = self.levels[0].shape[-1] / (sides * self.side)
        return shrunk.log2().floor().clamp(0, len(self.levels) - 1).long()

    def _placed(self, glyphs: torch.Tensor, chosen: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Bicubic sampling (Keys 1981, a = -0.75) of each glyph into its box, clamped to valid colours."""
        scale = 1 / boxes[:, 2]
        theta = torch.zeros(len(chosen), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = scale
        theta[:, :, 2] = -(2 * boxes[:, :2] - 1) * scale[:, None]
        grid = F.affine_grid(
            theta.to(self.device, non_blocking=True), [len(chosen), 4, self.side, self.side], align_corners=False
        )
        source = glyphs[chosen.to(self.device, non_blocking=True)]
        placed = F.grid_sample(source, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
        alpha = placed[:, 3:].clamp(0, 1)
        return torch.cat([placed[:, :3].clamp_min(0).minimum(alpha), alpha], 1)


def psnr(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture in -1…1: 10 log10(range² / mean square error), (scenes,)."""
    error = ((drawn.float().clamp(-1, 1) - wanted) ** 2).flatten(1).mean(1)
    return 10 * (math.log10(4) - error.clamp_min(1e-10).log10())
