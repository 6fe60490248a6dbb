"""Predicted against measured peaks of a synthetic model, and seconds a step, over sizes and ceilings.

    python -m benchmarks.predictions [--model sd15|sdxl|klein|z-image] [--sizes 256x256,512x512,…]
        [--limits none,2GiB,1GiB,600MiB,least] [--steps 3] [--slow-disk] [--save FILE.json]

A run of its own for each cell of the grid. With --slow-disk every plan is as for a disk that reads 2 GB a second: few
steps then pay for loading weights that stay, as many steps do on any disk; what the cache knew of this machine's speed
is written over, and later runs correct it. With --save the figures go into a file as
well; benchmarks/charts.py draws those of benchmarks/predictions.json. At last: how much more was predicted than
measured, at least, at most and in the middle. Exit code 1 if a run fails or takes more than was predicted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from sdcli import machine
from sdcli.models.synthetic import SYNTHETIC
from sdcli.plan.speeds import remember_speed, typical_speed
from sdcli.units import MIB

GRIDS = {
    "sd15": ("256x256,512x512,768x512,640x384,1024x576,1024x1024", "none,2GiB,1GiB,600MiB,least"),
    "sdxl": ("512x512,1024x1024,1216x832", "none,4GiB,2GiB,1GiB,least"),
    "klein": ("512x512,1024x1024,1216x832", "none,6GiB,4GiB,2GiB,least"),
    "z-image": ("512x512,1024x1024,1216x832", "none,8GiB,4GiB,2GiB,least"),
}
"""Sizes and ceilings of each model, unless others are asked for."""

SLOW_DISK_BYTES = 2e9

HEADER = (
    "| size | ceiling | denoiser in memory, guidance, memory goes back after | s/step | decode s | predicted MiB"
    " | measured MiB | over |"
)


def ask(command: str, model: str, size: str, *options: str) -> dict[str, Any] | str:
    """The program's JSON report, or its error."""
    job = ["a photograph of an astronaut riding a horse", "-m", SYNTHETIC + model, "--size", size, "--json"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sdcli", command, *job, *options], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else (done.stderr.strip().splitlines() or ["?"])[-1]


def row(model: str, size: str, limit: str, steps: str, slow_disk: bool, out: Path, cells: list[dict[str, Any]]) -> str:
    """One cell of the grid: a run of its own."""
    if limit == "least":
        told = ask("plan", model, size)
        if isinstance(told, str):
            return f"| {size} | {limit} | | | | | | {told} |"
        limit = f"{told['smallest_limit_bytes'] // MIB}MiB"
    if slow_disk:
        dtype = machine.choose_dtype("cpu", "auto")[0]
        remember_speed("cpu", dtype, replace(typical_speed("cpu", dtype), prepared_bytes=SLOW_DISK_BYTES))
    job = "--mem-limit", limit, "-s", steps, "--seed", "1", "-q", "--no-cache", "--force", "-o", str(out)
    run = ask("txt2img", model, size, *job)
    if isinstance(run, str):
        return f"| {size} | {limit} | | | | | | {run} |"
    memory, plan = run["memory"], run["plan"]
    predicted, measured = memory["predicted_peak_bytes"], memory["peak_bytes"]
    stages = {stage["name"]: [stage["predicted_peak_bytes"], stage["peak_bytes"]] for stage in run["stages"]}
    kept = {
        "model": model,
        "size": size,
        "limit": limit,
        "step_s": run["steps"]["median_s"],
        "plan": plan,
        "stages": stages,
    }
    cells.append(kept | {"predicted_bytes": predicted, "measured_bytes": measured})
    decode = next(stage["run_s"] for stage in run["stages"] if stage["name"] == "decode")
    return (
        f"| {size} | {limit} | {plan['resident_bytes'] / MIB:.0f} MiB, {plan['guidance']}, {plan['give_back']} |"
        f" {run['steps']['median_s']:.2f} | {decode:.1f} | {predicted / MIB:.0f} | {measured / MIB:.0f} |"
        f" {100 * over(cells[-1]):+.1f} % |"
    )


def over(cell: dict[str, Any]) -> float:
    """How much more was predicted than measured, as a share of what was measured; negative where it was under."""
    return float(cell["predicted_bytes"] / cell["measured_bytes"] - 1)


def main() -> int:
    """Print a row a cell. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=GRIDS, default="sd15")
    parser.add_argument("--sizes", help="with commas")
    parser.add_argument("--limits", help="with commas; `least` is the one that sdcli plan tells")
    parser.add_argument("--steps", default="3")
    parser.add_argument("--slow-disk", action="store_true")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    sizes, limits = GRIDS[options.model]
    grid = list(product((options.sizes or sizes).split(","), (options.limits or limits).split(",")))
    print(f"{HEADER}\n{'| --- ' * 8}|")
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        for size, limit in grid:
            print(
                row(options.model, size, limit, options.steps, options.slow_disk, Path(home) / "a.png", cells),
                flush=True,
            )
            if options.save:
                options.save.write_text(json.dumps(cells, indent=1) + "\n", "utf-8")
    overs = [100 * over(cell) for cell in cells]
    if overs:
        print(f"\nover: {min(overs):+.1f} to {max(overs):+.1f} %, median {statistics.median(overs):+.1f} %")
    return 1 if len(cells) < len(grid) or min(overs) < 0 else 0


if __name__ == "__main__":
    sys.exit(main())
