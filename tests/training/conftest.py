"""Glyphs made here, so that no font is needed: a dozen plain shapes, each in a colour of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.glyphs import Glyphs, save_glyphs

NAMES = [
    ["fox", "fox face"], ["cat"], ["dog"], ["red apple", "apple"], ["owl"], ["tree", "oak tree"], ["house"],
    ["car", "automobile"], ["fishing boat"], ["rocket"], ["scissors"], ["giraffe"],
]  # fmt: skip


@pytest.fixture(scope="session")
def glyphs() -> Glyphs:
    """Twelve concepts of 64x64: stripes, rings and wedges on clear ground."""
    y, x = np.mgrid[0:64, 0:64] / 63 * 2 - 1
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    chance = np.random.default_rng(5)
    pictures = []
    for index in range(len(NAMES)):
        shape = (radius < 0.9) & (np.cos((index + 1) * angle + 4 * radius * (index % 3)) > -0.3)
        colour = chance.integers(0, 256, 3)
        shade = np.where((x * (index % 4) + y > 0)[..., None], colour, 255 - colour)
        pictures.append(np.concatenate([shade, 255 * shape[..., None]], 2).astype(np.uint8))
    return Glyphs(np.stack(pictures), NAMES)


@pytest.fixture(scope="session")
def glyphs_file(glyphs: Glyphs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a file."""
    path = tmp_path_factory.mktemp("glyphs") / "glyphs.npz"
    save_glyphs(glyphs, path)
    return path


@pytest.fixture(scope="session")
def sitting(glyphs_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state after five steps of each stage, at the tiny size."""
    from training.train import main

    out = tmp_path_factory.mktemp("state")
    options = ["--size", "tiny", "--device", "cpu", "--batch", "4", "--pool", "8", "--most-steps", "5"]
    main(["--all", "--minutes", "2", "--out", str(out), "--glyphs", str(glyphs_file), *options])
    return out


@pytest.fixture(scope="session")
def model(sitting: Path, glyphs: Glyphs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder made of it."""
    from training.assemble import assemble

    out = tmp_path_factory.mktemp("model") / "glyphs"
    assemble(sitting, out, glyphs, "tiny")
    return out
