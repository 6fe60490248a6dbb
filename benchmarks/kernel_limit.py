"""A synthetic model under a memory limit that the kernel enforces, from a cold page cache (Linux, root).

    python -m benchmarks.kernel_limit [--model sd15] [--size 512x512] [--steps 8] [--ceiling 600MiB] [--limit 700MiB]
        [--least]

First seconds a step under the ceiling: with the weights in the page cache and no kernel limit, and with the weights
evicted, in a control group of that limit; what is more is the disk's share. Then the same prompt once more, evicted and
without a limit: how much of each part of the model is in the page cache afterwards, which is what was read. With
--least the smallest control group at last, in steps of 16 MiB, that a run survives whose ceiling is that group's own
limit, by bisection.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli import settings
from sdcli.models.synthetic import made_folder
from sdcli.units import GIB, MIB, parse_size
from tests.full.outside import evict, in_page_cache, kernel_limit


@dataclass(frozen=True)
class Job:
    """What is drawn."""

    model: str
    size: str
    steps: int
    out: Path

    def command(self, ceiling: str, steps: int | None = None, keep: bool = False) -> list[str]:
        """The program under a ceiling of its own; what it knows of the prompt is used only to `keep` to it."""
        job = f"-m synthetic:{self.model} --size {self.size} -s {steps or self.steps} --seed 7 --device cpu"
        more = f"--json -q --force --mem-limit {ceiling} -o {self.out}"
        whole = [] if keep else ["--no-cache"]
        return [sys.executable, "-P", "-m", "sdcli", "txt2img", "an astronaut", *job.split(), *more.split(), *whole]

    def limited(self, ceiling: str, limit_bytes: int, steps: int | None = None) -> tuple[int, int, str, str]:
        """Exit code, kills by the kernel, stdout and stderr of a run from a cold cache in a control group."""
        with kernel_limit() as group:
            if group is None:
                sys.exit("needs root and a memory control group")
            evict(settings.cache_dir())
            seen, kills = group.run(self.command(ceiling, steps), dict(os.environ), limit_bytes)
            return seen.code, kills, seen.out, seen.err.strip()


def pace(report: dict[str, Any]) -> str:
    """A line of figures."""
    seconds = {stage["name"]: stage["run_s"] + stage["load_s"] for stage in report["stages"]}
    read = report["steps"]["bytes_read_median"] / GIB
    return (
        f"{report['steps']['median_s']:.2f} s/step that reads {read:.2f} GiB, encode {seconds['encode_prompt']:.1f} s,"
        f" decode {seconds['decode']:.1f} s, {report['total_s']:.1f} s in all,"
        f" footprint {report['memory']['peak_bytes'] / MIB:.0f} MiB"
    )


def what_is_read(job: Job, ceiling: str) -> str:
    """Of each part of the model, by a run that finds its prompt in the cache and nothing in the page cache."""
    keep = job.command(ceiling, keep=True)
    subprocess.run(keep, capture_output=True, check=True)
    folder = made_folder(job.model)
    evict(folder)
    subprocess.run(keep, capture_output=True, check=True)
    parts = [part for part in sorted(folder.iterdir()) if part.is_dir()]
    return ", ".join(f"{part.name} {in_page_cache(part) / MIB:.0f} of {size_of(part) / MIB:.0f} MiB" for part in parts)


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--ceiling", default="600MiB")
    parser.add_argument("--limit", default="700MiB")
    parser.add_argument("--least", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        job = Job(args.model, args.size, args.steps, Path(home) / "a.png")
        warm = subprocess.run(job.command(args.ceiling), capture_output=True, text=True, check=True)
        print(f"warm, no kernel limit, ceiling {args.ceiling}:", pace(json.loads(warm.stdout)), flush=True)
        limit_bytes = parse_size(args.limit)
        code, kills, told, error = job.limited(args.ceiling, limit_bytes)
        told = pace(json.loads(told)) if code == 0 else f"exit code {code}, {kills} killed: {error}"
        print(f"cold, kernel limit {args.limit}, ceiling {args.ceiling}:", told, flush=True)
        print("from a kept prompt, in the page cache afterwards:", what_is_read(job, args.ceiling), flush=True)
        low, high = 256 // 16, limit_bytes // (16 * MIB)
        while args.least and high - low > 1:
            middle = (low + high) // 2
            code, kills, told, error = job.limited(f"{middle * 16}MiB", middle * 16 * MIB, 2)
            said = pace(json.loads(told)) if code == 0 else error
            print(f"kernel limit {middle * 16} MiB: exit code {code}, {kills} killed by the kernel; {said}", flush=True)
            low, high = (low, middle) if code == 0 else (middle, high)
        if args.least:
            print(f"the smallest that survives: {high * 16} MiB")


if __name__ == "__main__":
    main()
