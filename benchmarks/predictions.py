"""Predicted against measured peaks of synthetic:sd15, and seconds a step, over sizes and ceilings.

python benchmarks/predictions.py [--sizes 256x256,512x512,…] [--limits none,2GiB,1GiB,600MiB,least] [--steps 3]
    [--save benchmarks/predictions.json]

With --save, the figures go into a file as well, from which benchmarks/charts.py draws.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sdcli.units import MIB

HEADER = (
    "| size | ceiling | denoiser in memory, guidance, memory goes back after | s/step | decode s | predicted MiB"
    " | measured MiB | over |"
)


def ask(command: str, size: str, *options: str) -> dict[str, Any] | str:
    """The program's JSON report, or its error."""
    width, height = size.split("x")
    job = ["a photograph of an astronaut riding a horse", "-m", "synthetic:sd15", "-W", width, "-H", height, "--json"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "sdcli", command, *job, *options], capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def row(size: str, limit: str, steps: str, out: Path, cells: list[dict[str, Any]]) -> str:
    """One cell of the grid: a run of its own."""
    if limit == "least":
        told = ask("plan", size)
        assert not isinstance(told, str), told
        limit = f"{told['smallest_limit_bytes'] // MIB}MiB"
    job = "--mem-limit", limit, "-s", steps, "--seed", "1", "-q", "--no-cache", "--force", "-o", str(out)
    run = ask("txt2img", size, *job)
    if isinstance(run, str):
        return f"| {size} | {limit} | | | | | | {run} |"
    memory, plan = run["memory"], run["plan"]
    predicted, measured = memory["predicted_peak_bytes"], memory["peak_bytes"]
    stages = {stage["name"]: [stage["predicted_peak_bytes"], stage["peak_bytes"]] for stage in run["stages"]}
    kept = {"size": size, "limit": limit, "step_s": run["steps"]["median_s"], "plan": plan, "stages": stages}
    cells.append(kept | {"predicted_bytes": predicted, "measured_bytes": measured})
    decode = next(stage["run_s"] for stage in run["stages"] if stage["name"] == "decode")
    return (
        f"| {size} | {limit} | {plan['resident_bytes'] / MIB:.0f} MiB, {plan['guidance']}, {plan['give_back']} |"
        f" {run['steps']['median_s']:.2f} | {decode:.1f} | {predicted / MIB:.0f} | {measured / MIB:.0f} |"
        f" {100 * (predicted / measured - 1):+.1f} % |"
    )


def main() -> None:
    """Print a row a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256x256,512x512,768x512,640x384,1024x576,1024x1024")
    parser.add_argument("--limits", default="none,2GiB,1GiB,600MiB,least")
    parser.add_argument("--steps", default="3")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    print(f"{HEADER}\n{'| --- ' * 8}|")
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        for size in options.sizes.split(","):
            for limit in options.limits.split(","):
                print(row(size, limit, options.steps, Path(home) / "a.png", cells), flush=True)
                if options.save:
                    options.save.write_text(json.dumps(cells, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
