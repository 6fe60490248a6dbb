"""What a denoise step takes besides weights and what the process weighs before: synthetic:sd15, alone (Linux).

    python -m benchmarks.step_memory [--sizes 256x256,512x512] [--steps 4]

Nothing is resident: weights stream from the prepared copy. A process of its own for each way; its footprint is sampled
from outside every 2 ms. The first step compiles kernels, and has a column of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

from sdcli import machine
from sdcli.domain import GiveBack, Guidance
from sdcli.host.worker import worker_environment
from sdcli.models.opened import open_model
from sdcli.models.synthetic import find_synthetic
from sdcli.plan.meter import TreeMeter
from sdcli.plan.planner import SCRATCHES
from sdcli.units import MIB
from sdcli.weights.copies import place_of_copy

ROOT = Path(__file__).parent.parent

GUIDANCES: tuple[Guidance, ...] = ("batched", "sequential")
GIVING_BACK: tuple[GiveBack, ...] = ("stage", "block", "piece")


def main() -> None:
    """A row for each size and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256x256,512x512")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return denoise(options.sizes, *options.way, options.steps)
    print("| size | guidance | memory goes back after | first step, MiB | later steps | between steps | s/step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for size, guidance, give_back in product(options.sizes.split(","), GUIDANCES, GIVING_BACK):
        if guidance == "sequential" or machine.cpu_batches():
            print(
                f"| {size} | {guidance} | {give_back} | {watched(size, guidance, give_back, options.steps)} |",
                flush=True,
            )
    return None


class Sampler(threading.Thread):
    """The highest footprint of a process since it was last asked."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._meter, self._highest = TreeMeter(pid), 0
        self.start()

    def run(self) -> None:
        while True:
            self._highest = max(self._highest, self._meter.footprint_bytes())
            time.sleep(0.002)

    def highest(self) -> int:
        """Asked for, it begins anew."""
        highest, self._highest = self._highest, 0
        return highest


def watched(size: str, guidance: str, give_back: str, steps: int) -> str:
    """One way in a process of its own: its columns."""
    way = ("--sizes", size, "--way", guidance, give_back, "--steps", str(steps))
    command = [sys.executable, "-m", "benchmarks.step_memory", *way]
    environment = worker_environment(os.environ)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()  # the weights are lent
        sampler, peaks, seconds = Sampler(process.pid), [], []
        rest = begun = _standing(sampler)
        for _ in range(steps):
            process.stdin.write("\n")
            process.stdin.flush()
            seconds.append(float(process.stdout.readline()))
            peaks.append(sampler.highest() - begun)
            rest = _standing(sampler)
        process.stdin.close()
    columns = [bytes_ / MIB for bytes_ in (peaks[0], max(peaks[1:], default=peaks[0]), rest - begun)]
    return " | ".join(f"{mib:.0f}" for mib in columns) + f" | {sorted(seconds)[len(seconds) // 2]:.2f}"


def _standing(sampler: Sampler) -> int:
    """The footprint of a process that waits."""
    sampler.highest()
    time.sleep(0.1)
    return sampler.highest()


def denoise(size: str, guidance: Guidance, give_back: GiveBack, steps: int) -> None:
    """Take steps, each when told to, and say how long it took."""
    from sdcli.engine.lean_imports import import_network

    network = import_network("sdcli.families.sd.network")
    import torch

    from sdcli.devices import open_device
    from sdcli.devices.base import DTYPES
    from sdcli.weights.borrow import Borrow
    from sdcli.weights.lend import packer
    from sdcli.weights.prepared import make_copy, open_copy
    from tests.support import ASTRONAUT, STREAMED, tables

    device = open_device("cpu")
    device.prepare(None)
    folder, _ = find_synthetic("synthetic:sd15", lambda *_: sys.exit("make it first: sdcli bench --steps 1"))
    model, (name, _) = open_model("synthetic:sd15", Path(folder)), machine.choose_dtype("cpu", "auto")
    width, height = map(int, size.split("x"))
    request, unet, dtype = replace(ASTRONAUT, width=width, height=height), model.parts["unet"], DTYPES[name]
    table = tables(folder, request, STREAMED, name)["denoise"]
    borrow = Borrow(device, dtype, table, scratch_bytes=min(SCRATCHES), give_back=give_back, repeats=True)
    size_bytes = sum(math.prod(row.shape) for row in table if row.use == "matrix") * dtype.itemsize
    place = place_of_copy(unet, "cpu", name, machine.cpu_packs_for(height // 8, width // 8, name), size_bytes)
    latents, context = torch.randn(1, 4, height // 8, width // 8), torch.randn(2, 77, 768).to(dtype)
    passes = [context] if guidance == "batched" else [row[None] for row in context]
    with torch.inference_mode():
        if place is not None and (copy := open_copy(place)) is not None:
            borrow.prepared = copy
        elif place is not None:
            with packer(network.build(unet), unet, table, device, dtype) as (names, pack):
                borrow.prepared = make_copy(place, names, pack)
        with network.denoise(model, request, borrow) as denoiser:
            print("lent", flush=True)
            for _ in range(steps):
                sys.stdin.readline()
                device.between_blocks()
                started = time.perf_counter()
                for some in passes:
                    denoiser(latents.expand(len(some), -1, -1, -1), torch.tensor(500), {"tokens": some})
                seconds = time.perf_counter() - started
                device.between_blocks()
                print(seconds, flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main()
