"""Measure a model on held-out prompts: known concepts in combinations that training never showed.

`python -m training.evaluate --model FOLDER [--prompts 240] [--guidance 1 --guidance 5] [--out DIR]` prints a table
and writes measures.json, a contact sheet and the loss curves. `--engine sdcli` draws each picture with the program
itself, as a user would; the default draws in batches with diffusers' classes and gives the same kind of picture.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from training.autoencoder import measure
from training.compose import Composer
from training.glyphs import Glyphs, load_glyphs
from training.measure import Judge
from training.pictures import contact_sheet, loss_curves
from training.recipes import COLOUR_NAMES, LARGE, MEDIUM, PLACES, SIZE_WORDS, SMALL, Planner, Recipe, plain_caption
from training.setting import prepare_device
from training.words import open_tokenizer, token_ids

SHOWN = (
    "a fox on a blue background",
    "a red apple on a white background",
    "a cat and a dog on a green background",
    "a rocket at the top on a black background",
    "a small boat on teal",
    "a large sunflower on a pink background",
    "pizza on an orange background",
    "a house and a tree on a yellow background",
    "an octopus in the bottom right corner on a purple background",
    "gray background, a guitar",
    "a heart above a star on a brown background",
    "a bird on the left on a red background",
)
"""The first half of the contact sheet; the second half is held out."""


class Artist:
    """Draws prompts in batches with diffusers' classes, as sdcli does it one by one."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> None:
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel

        dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        self.device, self.dtype = device, dtype
        self.tokenizer = open_tokenizer(folder / "tokenizer")
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype).to(device).eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype).to(device).eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=dtype).to(device).eval()
        self.scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")

    @torch.no_grad()
    def __call__(self, prompts: list[str], guidance: float, steps: int, seed: int) -> torch.Tensor:
        """(prompts, 3, s, s) of 0…1, on the CPU; picture i has seed + i."""
        drawn = []
        for begin in range(0, len(prompts), 60):
            part = prompts[begin : begin + 60]
            texts = ["" for _ in part] + part if guidance > 1 else part
            context = self.text(token_ids(self.tokenizer, texts).to(self.device)).last_hidden_state
            latents = self._noise(len(part), seed + begin)
            self.scheduler.set_timesteps(steps)
            for timestep in self.scheduler.timesteps:
                both = torch.cat([latents, latents]) if guidance > 1 else latents
                output = self.unet(both.to(self.dtype), timestep, context).sample.float()
                if guidance > 1:
                    plain, told = output.chunk(2)
                    output = plain + guidance * (told - plain)
                latents = self.scheduler.step(output, timestep, latents).prev_sample
            scaled = (latents / self.vae.config["scaling_factor"]).to(self.dtype)
            drawn += [self.vae.decode(few).sample.float().cpu() for few in scaled.split(20)]
        return (torch.cat(drawn) / 2 + 0.5).clamp(0, 1)

    def _noise(self, count: int, seed: int) -> torch.Tensor:
        side, channels = self.unet.config["sample_size"], self.unet.config["in_channels"]
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        return torch.cat([torch.randn(1, channels, side, side, generator=each) for each in generators]).to(self.device)


class Program:
    """Draws prompts one by one with sdcli, each in a process of its own."""

    def __init__(self, folder: Path, device: torch.device, dtype: str = "auto") -> None:
        self.model = ["-m", str(folder), "--device", device.type, "--dtype", dtype]

    def __call__(self, prompts: list[str], guidance: float, steps: int, seed: int) -> torch.Tensor:
        """(prompts, 3, s, s) of 0…1; picture i has seed + i."""
        drawn = []
        with tempfile.TemporaryDirectory() as home:
            for index, prompt in enumerate(prompts):
                path = Path(home) / f"{index}.png"
                options = ["-s", str(steps), "-g", str(guidance), "--seed", str(seed + index), "-o", str(path), "-q"]
                subprocess.run([sys.executable, "-m", "sdcli", "txt2img", prompt, *self.model, *options], check=True)
                drawn.append(torch.from_numpy(np.array(Image.open(path).convert("RGB"))))
        return torch.stack(drawn).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Questions:
    """Held-out prompts and the scenes that they ask for."""

    prompts: list[str]
    recipe: Recipe


def held_out_prompts(planner: Planner, count: int, seed: int = 1) -> Questions:
    """A third plain single objects, a third in other sizes or places, a third pairs; every combination held out."""
    chance = random.Random(seed)  # noqa: S311 - not secret
    single, pair = planner.held_colour.nonzero().tolist(), planner.held_pair.triu().nonzero().tolist()
    chance.shuffle(single)
    chance.shuffle(pair)
    pairs = min(count // 3, len(pair))
    rows: list[tuple[int, int, int, int, int, bool]] = []
    for index, (concept, colour) in enumerate(single[: count - pairs]):
        plain = index < (count - pairs + 1) // 2
        size = MEDIUM if plain else chance.choice((SMALL, MEDIUM, LARGE))
        place = 0 if plain or size == LARGE else chance.randrange(len(PLACES))
        rows.append((concept, -1, colour, size, place, False))
    for first, second in pair[:pairs]:
        one, other = chance.sample((first, second), 2)
        rows.append((one, other, chance.randrange(len(COLOUR_NAMES)), MEDIUM, 0, chance.random() < 0.2))
    prompts = [
        plain_caption(
            [planner.names[concept][0] for concept in (one, other) if concept >= 0],
            COLOUR_NAMES[colour], SIZE_WORDS[size][0], PLACES[place][0], above,
        )
        for one, other, colour, size, place, above in rows
    ]  # fmt: skip
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    return Questions(prompts, planner.exactly(*columns))


def score(pictures: torch.Tensor, recipe: Recipe, judge: Judge) -> dict[str, dict[str, float]]:
    """Shares of objects nearest to their own glyph, of objects among the five nearest, and of right backgrounds."""
    device = judge.palette.device
    parts = [pictures[i : i + 32].to(device) for i in range(0, len(pictures), 32)]
    right = torch.cat([judge.colours(part) for part in parts]).cpu() == recipe.colour
    ranks = judge.ranks(pictures.to(device), recipe)
    pair = recipe.objects[:, 1] >= 0
    plain = ~pair & (recipe.size == MEDIUM) & (recipe.place == 0)
    groups = {"one object": plain, "one object, size or place": ~pair & ~plain, "two objects": pair}
    table = {}
    for name, chosen in (groups | {"all": torch.ones_like(pair)}).items():
        theirs = ranks[chosen]
        theirs = theirs[theirs >= 0]
        if len(theirs):
            table[name] = {
                "prompts": int(chosen.sum()),
                "top1": float((theirs == 0).float().mean()),
                "top5": float((theirs < 5).float().mean()),
                "background": float(right[chosen].float().mean()),
            }
    return table


def as_table(scores: dict[float, dict[str, dict[str, float]]], decibels: float, steps: int, concepts: int) -> str:
    """The measures in Markdown."""
    lines = [
        f"Held-out prompts, {steps} steps, nearest of {concepts} glyphs (features: training/measure.py).",
        "",
        "| guidance | asked for | prompts | top-1 | top-5 | background right |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for guidance, groups in scores.items():
        for name, row in groups.items():
            shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("top1", "top5", "background"))
            lines.append(f"| {guidance:g} | {name} | {row['prompts']} | {shares} |")
    return "\n".join([*lines, "", f"Autoencoder on composed scenes: PSNR {decibels:.2f} dB."])


def evaluate(args: argparse.Namespace, glyphs: Glyphs) -> str:
    """Draw, judge, write the files; returns the table."""
    device = prepare_device(args.device)
    planner = Planner(glyphs.names)
    artist = Artist(args.model, device)
    draw: Any = Program(args.model, device) if args.engine == "sdcli" else artist
    side = artist.vae.config["sample_size"]
    with torch.no_grad():
        decibels = measure(artist.vae, planner, Composer(glyphs.pixels, device, side), args.scenes, 10**6)
    questions = held_out_prompts(planner, args.prompts)
    judge = Judge(glyphs, planner.palette, device)
    scores, pictures = {}, torch.empty(0)
    for guidance in args.guidance:
        began = time.monotonic()
        pictures = draw(questions.prompts, guidance, args.steps, args.seed)
        scores[guidance] = score(pictures, questions.recipe, judge)
        print(f"guidance {guidance:g}: {time.monotonic() - began:.1f} s", flush=True)
    table = as_table(scores, decibels, args.steps, len(glyphs))
    args.out.mkdir(parents=True, exist_ok=True)
    measures = {"table": table, "psnr": decibels, "steps": args.steps, "seed": args.seed, "scores": scores}
    (args.out / "measures.json").write_text(json.dumps(measures, indent=2) + "\n", "utf-8")
    spread = torch.linspace(0, len(questions.prompts) - 1, min(12, len(questions.prompts))).long()
    shown = [*SHOWN, *(questions.prompts[i] for i in spread)]
    made = torch.cat([draw(list(SHOWN), args.guidance[-1], args.steps, args.seed), pictures[spread]])
    contact_sheet(made, shown, args.out / "sheet.png")
    if args.losses and args.losses.is_file():
        loss_curves(args.losses, args.out / "curves.png")
    return table


def main(argv: list[str] | None = None) -> None:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--guidance", type=float, action="append")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=256, help="composed scenes for the PSNR")
    parser.add_argument("--engine", choices=("batched", "sdcli"), default="batched")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--losses", type=Path, help="losses.csv of the training")
    parser.add_argument("--glyphs", type=Path, default=Path("training/glyphs.npz"))
    args = parser.parse_args(argv)
    args.guidance = args.guidance or [1.0, 5.0]
    print(evaluate(args, load_glyphs(args.glyphs)), flush=True)


if __name__ == "__main__":
    main()
