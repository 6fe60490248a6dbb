"""synthetic:sd15 at 512x512 under a memory limit that the kernel enforces, from a cold page cache (Linux, root).

    PYTHONPATH=. python benchmarks/kernel_limit.py [--steps 8]

First seconds a step under a ceiling of 600 MiB: with the weights in the page cache and no kernel limit, and with the
weights evicted in a control group of 700 MiB. Then the smallest control group, in steps of 16 MiB, that a run survives
whose ceiling is that group's own limit, by bisection.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sdcli import settings
from sdcli.units import MIB
from tests.full.outside import evict, kernel_limit


def command(limit: str, steps: int, out: Path) -> list[str]:
    """The program under a ceiling of its own."""
    job = (
        f"-m synthetic:sd15 -s {steps} --seed 7 --device cpu --json -q --no-cache --force --mem-limit {limit} -o {out}"
    )
    return [sys.executable, "-P", "-m", "sdcli", "txt2img", "an astronaut", *job.split(), "-o", str(out)]


def limited(limit: str, limit_bytes: int, steps: int, out: Path) -> tuple[int, int, str, str]:
    """Exit code, processes killed by the kernel, stdout and stderr of a run from a cold cache in a control group."""
    with kernel_limit() as group:
        if group is None:
            sys.exit("needs root and a memory control group")
        evict(settings.cache_dir())
        seen, kills = group.run(command(limit, steps, out), dict(os.environ), limit_bytes)
        return seen.code, kills, seen.out, seen.err.strip()


def pace(report: dict[str, Any]) -> str:
    """A line of figures."""
    seconds = {stage["name"]: stage["run_s"] + stage["load_s"] for stage in report["stages"]}
    return (
        f"{report['steps']['median_s']:.2f} s/step, decode {seconds['decode']:.1f} s, {report['total_s']:.1f} s in all,"
        f" footprint {report['memory']['peak_bytes'] / MIB:.0f} MiB"
    )


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "a.png"
        warm = subprocess.run(command("600MiB", steps, out), capture_output=True, text=True, check=True)
        print("warm, no kernel limit, ceiling 600 MiB:", pace(json.loads(warm.stdout)), flush=True)
        code, kills, told, error = limited("600MiB", 700 * MIB, steps, out)
        told = pace(json.loads(told)) if code == 0 else f"exit code {code}, {kills} killed: {error}"
        print("cold, kernel limit 700 MiB, ceiling 600 MiB:", told, flush=True)
        low, high = 256 // 16, 700 // 16
        while high - low > 1:
            middle = (low + high) // 2
            code, kills, told, error = limited(f"{middle * 16}MiB", middle * 16 * MIB, 2, out)
            said = pace(json.loads(told)) if code == 0 else error
            print(f"kernel limit {middle * 16} MiB: exit code {code}, {kills} killed by the kernel; {said}", flush=True)
            low, high = (low, middle) if code == 0 else (middle, high)
        print(f"the smallest that survives: {high * 16} MiB")


if __name__ == "__main__":
    main()
