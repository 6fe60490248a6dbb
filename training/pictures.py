"""Contact sheets and loss curves, with Pillow only."""

from __future__ import annotations

import csv
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

TILE, CAPTION, COLUMNS = 192, 34, 6


def contact_sheet(pictures: torch.Tensor, captions: list[str], path: Path, columns: int = COLUMNS) -> None:
    """Draw (b, 3, s, s) of 0…1 in rows, each with its caption below."""
    font = ImageFont.load_default(11)
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * (TILE + 6) + 6, rows * (TILE + CAPTION + 6) + 6), "white")
    draw = ImageDraw.Draw(sheet)
    pixels = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for index, (tile, caption) in enumerate(zip(pixels, captions, strict=True)):
        x, y = 6 + index % columns * (TILE + 6), 6 + index // columns * (TILE + CAPTION + 6)
        sheet.paste(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        draw.multiline_text((x, y + TILE + 2), textwrap.fill(caption, 34), fill="black", font=font, spacing=2)
    sheet.save(path)


def loss_curves(losses: Path, path: Path, width: int = 900, height: int = 320) -> None:
    """Draw losses.csv, one panel a stage: loss in blue, PSNR in red, against the stage's seconds."""
    table: dict[str, list[tuple[float, float, float | None]]] = {}
    with losses.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            decibels = float(row["psnr"]) if row["psnr"] else None
            table.setdefault(row["stage"], []).append((float(row["seconds"]), float(row["loss"]), decibels))
    picture = Image.new("RGB", (width, max(1, len(table)) * height), "white")
    draw = ImageDraw.Draw(picture)
    for panel, (stage, rows) in enumerate(table.items()):
        seconds = [row[0] for row in rows]
        area = (60, panel * height + 30, width - 60, (panel + 1) * height - 30)
        draw.rectangle(area, outline="gray")
        has_psnr = all(row[2] is not None for row in rows)
        shown = "loss (blue, left), PSNR in dB (red, right)" if has_psnr else "loss"
        draw.text((area[0], area[1] - 20), f"{stage}: {shown}", fill="black")
        draw.text((area[0], area[3] + 6), f"{min(seconds):.0f} s", fill="black")
        draw.text((area[2] - 40, area[3] + 6), f"{max(seconds):.0f} s", fill="black")
        _curve(draw, area, seconds, [row[1] for row in rows], "blue", left=True)
        if has_psnr:
            _curve(draw, area, seconds, [row[2] or 0.0 for row in rows], "red", left=False)
    picture.save(path)


def _curve(
    draw: ImageDraw.ImageDraw,
    area: tuple[int, int, int, int],
    xs: list[float],
    ys: list[float],
    ink: str,
    *,
    left: bool,
) -> None:
    """One line with its least and largest value; the largest tenth, of the first steps, is cut off at the top."""
    low, high = min(ys), sorted(ys)[-1 - len(ys) // 10] if left else max(ys)
    wide, tall = max(1e-9, max(xs) - min(xs)), max(1e-9, high - low)
    across, down = area[2] - area[0], area[3] - area[1]
    points = [
        (area[0] + (x - min(xs)) / wide * across, area[3] - min(1.0, (y - low) / tall) * down)
        for x, y in zip(xs, ys, strict=True)
    ]
    if len(points) > 1:
        draw.line(points, fill=ink, width=2)
    at = 4 if left else area[2] + 6
    draw.text((at, area[1]), f"{high:.4g}", fill=ink)
    draw.text((at, area[3] - 12), f"{low:.4g}", fill=ink)
