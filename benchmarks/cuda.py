"""synthetic:sd15 on a CUDA GPU against the CPU: pictures, device memory, time.

    python benchmarks/cuda.py [--size 512] [--steps 4]

Prints a row for each way to run; PSNR is against FP32 on the CPU. What the driver says is in use (NVML) is
sampled from outside beside what we report.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdcli import machine
from sdcli.units import MIB

RUNS = (
    ("cpu", "fp32", "none"),
    ("cpu", "bf16", "none"),
    ("cuda", "fp32", "none"),
    ("cuda", "fp16", "none"),
    ("cuda", "fp16", "2.8GiB"),
    ("cuda", "fp16", "2GiB"),
    ("cuda", "fp16", "1500MiB"),
)


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    first: np.ndarray[Any, Any] | None = None
    print("device dtype ceiling   rc  peak MiB  NVML MiB  host MiB  s/step  total s  PSNR dB  denoiser")
    with tempfile.TemporaryDirectory() as folder:
        for device, dtype, limit in RUNS:
            out = Path(folder) / f"{device}-{dtype}-{limit}.png"
            report, seen, error = run(device, dtype, limit, out, options.size, options.steps)
            if report is None:
                print(f"{device:6} {dtype:5} {limit:8} {error}")
                continue
            picture = np.asarray(Image.open(out)).astype(float)
            first = picture if first is None else first
            memory = report["memory"]
            print(
                f"{device:6} {dtype:5} {limit:8}  ok {memory['peak_bytes'] / MIB:9.0f} {seen / MIB:9.0f}"
                f" {memory.get('host_peak_bytes', memory['peak_bytes']) / MIB:9.0f}"
                f" {report['steps']['median_s']:7.3f} {report['total_s']:8.1f} {psnr(picture, first):8.1f}"
                f"  {report['plan']['residency']}, {report['plan']['guidance']}",
                flush=True,
            )


def run(device: str, dtype: str, limit: str, out: Path, size: int, steps: int) -> tuple[Any, int, str]:
    """One run: its report (None if it failed), the most the GPU had in use beyond before, and the error."""
    before, seen, stop = machine.gpu_used_bytes(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen[0] = max(seen[0], machine.gpu_used_bytes() - before)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = subprocess.run(
        f"{sys.executable} -P -m sdcli txt2img astronaut -m synthetic:sd15 -s {steps} --seed 7 -o {out}"
        f" -W {size} -H {size} --device {device} --dtype {dtype} --mem-limit {limit} --json -q --no-cache".split(),
        capture_output=True,
        text=True,
    )
    stop.set()
    watcher.join()
    report = json.loads(done.stdout) if done.returncode == 0 else None
    return report, seen[0], f"rc {done.returncode}: {done.stderr.strip()[-300:]}"


def psnr(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """In dB, of 8-bit pictures."""
    error = float(((one - other) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


if __name__ == "__main__":
    main()
