"""What a checkpoint costs a step: made and packed in the worker, sent, and put away by the host.

python benchmarks/checkpoints.py [--model synthetic:sd15] [--size 512x512] [--steps 6] [--rounds 200]

The steps' seconds are those of a run of the program. The rest is measured alone, with tensors of the same size: what
the worker does, what goes through a pipe, and what the host does, which writes a file every quarter of a second at
most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """A row for each part, and the share of all in a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="synthetic:sd15")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    step_s = seconds_a_step(options.model, options.size, options.steps)
    parts = costs(options.model, options.size, options.steps, options.rounds)
    print("| part | ms a step | share of a step |\n| --- | --- | --- |")
    for name, seconds in {**parts, "all of it": sum(parts.values()), "a step": step_s}.items():
        print(f"| {name} | {seconds * 1e3:.3f} | {seconds / step_s:.3%} |")


def seconds_a_step(model: str, size: str, steps: int) -> float:
    """The median of a run's steps."""
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "fox.png")
        command = [sys.executable, "-P", "-m", "sdcli", "txt2img", "a red fox", "-m", model, "--size", size, "-q"]
        done = subprocess.run([*command, "-s", str(steps), "--json", "-o", output], stdout=subprocess.PIPE, check=True)
        return float(json.loads(done.stdout)["steps"]["median_s"])


def costs(model: str, size: str, steps: int, rounds: int) -> dict[str, float]:
    """Seconds a step of each part."""
    import torch

    from sdcli.app.folder import CHECKPOINT_S, RunFolder
    from sdcli.domain import Request
    from sdcli.engine.checkpoint import Checkpoint
    from sdcli.engine.schedulers import build_scheduler, from_noise
    from sdcli.families.registry import family_of
    from sdcli.messages import StepDone, read_message, write_message
    from sdcli.models.reference import resolve_model

    opened = resolve_model(model, lambda *_: sys.exit("make it first: sdcli models pull, or a run"))
    width, height = map(int, size.split("x"))
    geometry = family_of(opened).geometry(opened)
    request = Request("a", "", width, height, steps, 7.5, 1, 1)
    shape = (1, geometry.latent_channels, *geometry.latent_shape(request))
    scheduler, generator = build_scheduler(opened.parts["scheduler"], steps), torch.Generator("cpu").manual_seed(1)
    latents = from_noise(scheduler, torch.randn(shape, generator=generator))
    latents = scheduler.step(torch.zeros(shape), scheduler.timesteps[0], latents).prev_sample

    def pack() -> bytes:
        return Checkpoint.take(0, 1, steps, latents, generator, scheduler).to_bytes()

    blob, (reading, writing) = pack(), os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        heard = threading.Thread(target=lambda: [read_message(source) for _ in range(rounds)], daemon=True)
        heard.start()
        sent = median(lambda: write_message(sink, StepDone(0, 1, steps, 0.1, 0, blob)), rounds)
        heard.join()

    with tempfile.TemporaryDirectory() as cache:
        os.environ["SDCLI_CACHE"] = cache
        folder = RunFolder()

        def put() -> None:
            folder.checkpoints[0] = blob
            folder.checkpoints.put_away()

        written = median(put, rounds)
        folder.close(finished=True)
        del os.environ["SDCLI_CACHE"]
    kib = len(blob) / 1024
    return {
        f"made and packed, {kib:.0f} KiB": median(pack, rounds),
        "sent and taken": sent,
        f"written, as often as a step of more than {CHECKPOINT_S} s": written,
    }


def median(what: Callable[[], object], rounds: int) -> float:
    """Of its seconds."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        what()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
