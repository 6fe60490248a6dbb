"""From latents to colours by a linear map: fits that of the built-in model's autoencoder by least squares.

`python -m benchmarks.latent_rgb [--model FOLDER] [--scenes 64]` prints the rows for families/colours.py, a channel
each, the constant last, and how far the colours are from those of the pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training.compose import Composer
from training.recipes import Planner
from training.references import read_sheet

SHEET = Path(__file__).parents[1] / "tests" / "demo" / "references.png"
DEMO = Path(__file__).parents[1] / "sdcli" / "models" / "demo"


@torch.no_grad()
def fit(model: Path, scenes: int) -> tuple[torch.Tensor, float]:
    """(channels + 1, 3) from latents as the denoiser knows them, and 1, to RGB in -1…1; and the root mean square
    difference, of 255."""
    glyphs = read_sheet(SHEET)
    planner, vae = Planner(glyphs.names), AutoencoderKL.from_pretrained(model / "vae")
    side = int(vae.config["sample_size"])
    recipe = planner.draw(scenes, torch.Generator().manual_seed(0))
    pictures = Composer(glyphs.pixels, torch.device("cpu"), side)(recipe)
    latents = torch.cat([vae.encode(one[None]).latent_dist.mean for one in pictures]) * vae.config["scaling_factor"]
    colours = F.interpolate(pictures, size=latents.shape[-2:], mode="area")
    places = torch.cat([latents, torch.ones_like(latents[:, :1])], dim=1).movedim(1, -1).flatten(0, 2)
    wanted = colours.movedim(1, -1).flatten(0, 2)
    rows = torch.linalg.lstsq(places.double(), wanted.double()).solution
    away = (places.double() @ rows - wanted.double()).square().mean().sqrt()
    return rows, float(away) * 127.5


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--scenes", type=int, default=64)
    args = parser.parse_args()
    rows, away = fit(args.model, args.scenes)
    for row in rows.tolist():
        print("(" + ", ".join(f"{number:.4f}" for number in row) + "),")
    print(f"root mean square difference from the pictures' colours: {away:.1f} of 255")


if __name__ == "__main__":
    main()
