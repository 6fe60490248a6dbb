"""Seconds a step of synthetic:sd15 on the CPU: sdcli under each ceiling against diffusers, in turn, in one run.

    python benchmarks/step_time.py [--rounds 3] [--steps 4] [--size 512]

diffusers runs as its users would run it for speed: BF16, channels_last, its own pipeline and attention. The
first step of each process compiles kernels and is left out of the medians. Peaks are footprints of whole
process trees, sampled by sdcli's own meter from this process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from sdcli.memory.meter import TreeMeter
from sdcli.models.synthetic import find_synthetic
from sdcli.units import MIB

CEILINGS = ("2.8GiB", "2GiB", "1GiB")

DIFFUSERS = """
import json, sys, time, torch
from diffusers import StableDiffusionPipeline
folder, steps, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16, safety_checker=None, local_files_only=True)
pipe.unet.to(memory_format=torch.channels_last)
pipe.vae.to(memory_format=torch.channels_last)
pipe.set_progress_bar_config(disable=True)
times, last = [], None
def tick(pipe, step, timestep, tensors):
    times.append(time.perf_counter())
    return tensors
pipe("astronaut", num_inference_steps=steps, height=size, width=size, callback_on_step_end=tick)
ended = time.perf_counter()
print(json.dumps({"steps": [b - a for a, b in zip(times, times[1:])], "decode": ended - times[-1]}))
"""


def main() -> None:
    """Run all in turn, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args()
    folder, _ = find_synthetic("synthetic:sd15", lambda *_: sys.exit("make it first: sdcli bench --steps 1"))
    steps: dict[str, list[float]] = defaultdict(list)
    decodes: dict[str, list[float]] = defaultdict(list)
    peaks: dict[str, int] = defaultdict(int)
    for _ in range(options.rounds):
        for name in ("diffusers bf16", *CEILINGS):
            if name in CEILINGS:
                out, peak = measure(ours(name, options.steps, options.size))
                (run,) = json.loads(out)["runs"]
                if run["outcome"] != "ok":
                    print(f"{name}: {run['outcome']}")
                    continue
                steps[name].append(run["steps"]["median_s"])
                decodes[name].append(next(stage["run_s"] for stage in run["stages"] if stage["name"] == "decode"))
            else:
                out, peak = measure(
                    [sys.executable, "-c", DIFFUSERS, str(folder), str(options.steps), str(options.size)]
                )
                run = json.loads(out.splitlines()[-1])
                steps[name].append(statistics.median(run["steps"]))
                decodes[name].append(run["decode"])
            peaks[name] = max(peaks[name], peak)
            print(
                f"  {name:15} {steps[name][-1]:.2f} s/step, decode {decodes[name][-1]:.1f} s, {peak / MIB:.0f} MiB",
                flush=True,
            )
    base = statistics.median(steps["diffusers bf16"])
    print("| run | s/step, median of rounds (min-max) | against diffusers | decode s | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for name, times in steps.items():
        print(
            f"| {name} | {statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"
            f" | {statistics.median(times) / base:.2f} x | {statistics.median(decodes[name]):.1f}"
            f" | {peaks[name] / MIB:.0f} |"
        )


def ours(limit: str, steps: int, size: int) -> list[str]:
    """One of our runs; the table has the program's own median step."""
    command = f"{sys.executable} -P -m sdcli bench --no-warmup -q --json --mem-limit {limit} --steps {steps}"
    return [*command.split(), "-W", str(size), "-H", str(size)]


def measure(command: list[str]) -> tuple[str, int]:
    """A command's output and the peak of its process tree."""
    log = Path("/dev/null").open("w")  # noqa: SIM115  closed with this process
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    meter, peak = TreeMeter(process.pid), 0
    while process.poll() is None:
        peak = max(peak, meter.footprint_bytes())
        time.sleep(0.005)
    out, _ = process.communicate()
    return out, peak


if __name__ == "__main__":
    main()
