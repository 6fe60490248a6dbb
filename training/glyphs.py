"""Draw the glyphs of Noto Color Emoji once, as the material that scenes are composed of.

`python -m training.glyphs --out training/glyphs.npz` needs the font (Debian package fonts-noto-color-emoji,
SIL Open Font License 1.1) and Pillow with FreeType. Training needs the .npz only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.concepts import RANGES, captions_of, unicode_name

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109
"""The one size of the bitmaps in the font (CBDT), in pixels an em."""

SIDE = 128
"""Side of a stored glyph, in pixels."""

ALIKE = 0.1
"""Root mean square difference below which two glyphs count as alike, in 16x16 premultiplied RGBA of 0…1."""


@dataclass(frozen=True)
class Glyphs:
    """`pixels` (concepts, side, side, 4) uint8, alpha not premultiplied; `names`, each with its aliases after."""

    pixels: np.ndarray
    names: list[list[str]]

    def __len__(self) -> int:
        return len(self.names)


def load_glyphs(path: Path) -> Glyphs:
    """Read what `save_glyphs` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Glyphs(file["pixels"], json.loads(str(file["names"])))


def save_glyphs(glyphs: Glyphs, path: Path) -> None:
    """Write one compressed file: uint8 pixels, and the names as JSON text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, pixels=glyphs.pixels, names=np.array(json.dumps(glyphs.names)))


def draw_glyphs(font: Path = FONT, side: int = SIDE, alike: float = ALIKE) -> Glyphs:
    """Draw every glyph that may be a concept, and leave out the later of two that look alike."""
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(str(font), STRIKE)
    names: list[str] = []
    pictures: list[np.ndarray] = []
    small: list[np.ndarray] = []
    for code in (code for begin, end in RANGES for code in range(begin, end)):
        name = unicode_name(code)
        if name is None:
            continue
        canvas = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(canvas).text((8, 8), chr(code), font=face, embedded_color=True)
        box = canvas.getbbox()
        if box is None or not _is_picture(np.asarray(canvas)):
            continue
        glyph = canvas.crop(box)
        square = Image.new("RGBA", (max(glyph.size),) * 2)
        square.paste(glyph, ((square.width - glyph.width) // 2, (square.height - glyph.height) // 2))
        pixels = np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))
        summary = _summary(pixels)
        if small and min(float(np.sqrt(((summary - other) ** 2).mean())) for other in small) < alike:
            continue
        names.append(name)
        pictures.append(pixels)
        small.append(summary)
    return Glyphs(np.stack(pictures), captions_of(names))


def _is_picture(pixels: np.ndarray) -> bool:
    """Whether a drawn glyph is a picture: large enough, and not black text."""
    shown = pixels[pixels[..., 3] > 128][:, :3]
    return bool((pixels[..., 3] > 0).mean() > 0.08 and len(shown) and shown.max() > 10)


def _summary(pixels: np.ndarray, cells: int = 16) -> np.ndarray:
    """(side, side, 4) uint8 → (cells, cells, 4) premultiplied means of 0…1."""
    values = pixels.astype(np.float32) / 255
    values[..., :3] *= values[..., 3:]
    step = len(values) // cells
    return values[: cells * step, : cells * step].reshape(cells, step, cells, step, 4).mean((1, 3))


def main() -> None:
    """Draw the glyphs and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training/glyphs.npz"))
    parser.add_argument("--font", type=Path, default=FONT)
    args = parser.parse_args()
    glyphs = draw_glyphs(args.font)
    save_glyphs(glyphs, args.out)
    print(f"{len(glyphs)} concepts, {args.out.stat().st_size / 2**20:.1f} MiB in {args.out}")


if __name__ == "__main__":
    main()
