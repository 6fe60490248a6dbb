"""Draw a few glyphs on one sheet, so that a test can tell what a picture shows without the font.

`python -m training.references --glyphs training/glyphs.npz --out tests/demo/references.png` writes one RGBA picture:
the glyphs of NAMES in rows of COLUMNS, each SIDE pixels square, alpha not premultiplied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from training.glyphs import Glyphs, load_glyphs

NAMES = (
    "fox", "wolf", "raccoon", "lion", "tiger", "bear",
    "boat", "ship", "canoe", "sunflower", "blossom", "hibiscus",
    "octopus", "squid", "crab", "cat", "dog", "horse",
    "rocket", "airplane", "heart", "star", "red apple", "tomato",
)  # fmt: skip
"""Concepts that the tests ask for, among others that look like them; row by row."""

COLUMNS, SIDE = 6, 64

SOURCE = "Noto Color Emoji, copyright Google, SIL Open Font License 1.1; scaled by training/references.py of sdcli"


def draw_sheet(glyphs: Glyphs) -> Image.Image:
    """The sheet, RGBA: every glyph of NAMES made smaller with premultiplied alpha. KeyError for one not there."""
    numbers = {group[0]: number for number, group in enumerate(glyphs.names)}
    sheet = Image.new("RGBA", (COLUMNS * SIDE, -(-len(NAMES) // COLUMNS) * SIDE))
    for place, name in enumerate(NAMES):
        # Pillow premultiplies while it resizes RGBA, so that what is clear has no colour to bleed
        glyph = Image.fromarray(glyphs.pixels[numbers[name]]).resize((SIDE, SIDE), Image.Resampling.BOX)
        sheet.paste(glyph, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    return sheet


def read_sheet(path: Path) -> Glyphs:
    """The glyphs of a sheet that `draw_sheet` made, in the order of NAMES."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA"))
    rows = pixels.reshape(-1, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2)
    return Glyphs(np.ascontiguousarray(rows.reshape(-1, SIDE, SIDE, 4)[: len(NAMES)]), [[name] for name in NAMES])


def main() -> None:
    """Write the sheet and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, default=Path("training/glyphs.npz"))
    parser.add_argument("--out", type=Path, default=Path("tests/demo/references.png"))
    args = parser.parse_args()
    about = PngImagePlugin.PngInfo()
    about.add_text("Source", SOURCE)
    draw_sheet(load_glyphs(args.glyphs)).save(args.out, optimize=True, pnginfo=about)
    print(f"{len(NAMES)} glyphs, {args.out.stat().st_size / 1024:.0f} KiB in {args.out}")


if __name__ == "__main__":
    main()
