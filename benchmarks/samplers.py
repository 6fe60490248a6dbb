"""Every sampler with every schedule on the built-in model, judged by its own evaluation: which draw what was asked for.

`python -m benchmarks.samplers [--steps 12] [--sampler NAME] [--schedule NAME] [--seeds 2] [--device cuda]` prints a
table in Markdown: of twelve pictures, six scenes with two seeds each, how many are right; a dash where a schedule has
no effect. All of them are drawn in one batch with diffusers' classes and the program's own schedulers, which is the
same kind of picture.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sdcli.domain import Request
from sdcli.engine.schedulers import build_scheduler, from_noise, model_input, step_options
from sdcli.models import reference
from sdcli.models.opened import open_model
from sdcli.models.samplers import SAMPLERS, SCHEDULES, no_effect, scheduler_of
from sdcli.models.schedulers import possible_steps
from tests.demo.judge import Scene, judge
from training.evaluate import Artist
from training.recipes import LARGE, PLACES, SMALL
from training.words import token_ids

MODEL = Path(reference.__file__).parent / reference.DEMO

CORNER = next(at for at, place in enumerate(PLACES) if "bottom right" in place[0])

SCENES = (
    Scene(("fox",), "blue"),
    Scene(("airplane",), "yellow", SMALL),
    Scene(("sunflower",), "pink", LARGE),
    Scene(("octopus",), "black", place=CORNER),
    Scene(("cat", "dog"), "green"),
    Scene(("star", "red apple"), "gray"),
)
"""As in tests/demo/test_pictures.py."""

GUIDANCE = 5.0


class Batch:
    """Draws all scenes at once."""

    def __init__(self, seeds: int, device: torch.device) -> None:
        self._artist, self._model = Artist(MODEL, device, torch.float32), open_model("demo", MODEL)
        self._scenes = [scene for scene in SCENES for _ in range(seeds)]
        prompts = [scene.prompt for scene in self._scenes]
        ids = token_ids(self._artist.tokenizer, ["" for _ in prompts] + prompts)
        with torch.no_grad():
            self._words = self._artist.text(ids.to(device)).last_hidden_state
        self._noise = self._artist._noise(len(prompts), 0)

    def has_effect(self, sampler: str, schedule: str) -> bool:
        """Whether the sampler can go by the schedule."""
        return no_effect(self._model.parts["scheduler"], sampler, schedule) is None

    @torch.no_grad()
    def right(self, sampler: str, schedule: str, steps: int) -> int:
        """How many pictures are."""
        request = Request("", "", 256, 256, steps, GUIDANCE, 0, 1, sampler=sampler, schedule=schedule)
        component = scheduler_of(self._model, request)
        request = replace(request, steps=min(steps, possible_steps(component.class_name, component.config)[-1]))
        scheduler, generator = build_scheduler(component, request.steps), torch.Generator().manual_seed(0)
        options, latents = step_options(scheduler, generator), from_noise(scheduler, self._noise)
        for timestep in scheduler.timesteps:
            sample = model_input(scheduler, latents, timestep)
            output: Any = self._artist.unet(torch.cat([sample, sample]), timestep, self._words).sample
            plain, told = output.chunk(2)
            latents = scheduler.step(plain + GUIDANCE * (told - plain), timestep, latents, **options).prev_sample
        if not torch.isfinite(latents).all():
            return 0
        scaled = latents / self._artist.vae.config["scaling_factor"]
        drawn = torch.cat([self._artist.vae.decode(one[None]).sample for one in scaled])
        levels = ((drawn / 2 + 0.5).clamp(0, 1) * 255).round().int().cpu().permute(0, 2, 3, 1)
        return sum(judge(picture, scene).right for picture, scene in zip(levels, self._scenes, strict=True))


def main() -> None:
    """Draw, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sampler", action="append", help="may be repeated")
    parser.add_argument("--schedule", action="append", help="may be repeated")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu", type=torch.device)
    args = parser.parse_args()
    schedules = args.schedule or [schedule.name for schedule in SCHEDULES]
    batch, began = Batch(args.seeds, args.device), time.monotonic()
    print(f"{args.steps} steps, right of {args.seeds * len(SCENES)}", "", sep="\n")
    print("| sampler |", " | ".join(schedules), "|")
    print("| --- |", " | ".join("---" for _ in schedules), "|", flush=True)
    for sampler in args.sampler or [one.name for one in SAMPLERS]:
        print(f"| {sampler} |", end="", flush=True)
        for schedule in schedules:
            cell = str(batch.right(sampler, schedule, args.steps)) if batch.has_effect(sampler, schedule) else "-"
            print(f" {cell} |", end="", flush=True)
        print(flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
