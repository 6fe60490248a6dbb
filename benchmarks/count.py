"""Many pictures in one run: the peak while the first one is drawn against the peak while the last one is (Linux).

    python -m benchmarks.count [--model sd15] [--count 50] [--size 256x256] [--steps 8] [--limit 600MiB] [--prompts]

With --prompts every picture has a prompt of its own, and the peaks are those of its report. Without, the footprint of
the process tree is sampled from outside; whose turn it was is told by time: a stage's share of it for each picture. The
heap's gaps grow for some five steps: a picture of fewer has not its whole peak yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sdcli.plan.meter import TreeMeter
from sdcli.units import MIB


def main() -> None:
    """Print each picture's peak in both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd15")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--size", default="256x256", help="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--limit", default="600MiB")
    parser.add_argument("--prompts", action="store_true", help="of each picture its own")
    options = parser.parse_args()
    job = f"-m synthetic:{options.model} -s {options.steps} --seed 1 --size {options.size} --json -q --no-cache"
    job = f"{job} --mem-limit {options.limit}"
    with tempfile.TemporaryDirectory() as home:
        pictures = Path(home) / "pictures"
        pictures.mkdir()
        if options.prompts:
            prompts = Path(home) / "prompts.txt"
            prompts.write_text("".join(f"a fox that counts to {one}\n" for one in range(options.count)), "utf-8")
            asked, tell = ["--prompts", str(prompts)], each_report
        else:
            asked, tell = ["fox", "-b", str(options.count)], each_turn
        command = [sys.executable, "-P", "-m", "sdcli", "txt2img", *asked, *job.split(), "-o", str(pictures)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        meter, samples = TreeMeter(process.pid), []
        while process.poll() is None:
            samples.append((time.monotonic(), meter.footprint_bytes()))
            time.sleep(0.005)
        ended = time.monotonic()
        assert process.stdout
        reports = [json.loads(line) for line in process.stdout]
    if process.returncode:
        sys.exit(process.returncode)  # the program has said why
    tell(reports, samples, ended)


def each_report(reports: list[dict[str, Any]], *_: object) -> None:
    """Of a job for each picture."""
    for index, name in enumerate(stage["name"] for stage in reports[0]["stages"]):
        told(name, [report["stages"][index]["peak_bytes"] for report in reports])
    told("in all", [report["memory"]["peak_bytes"] for report in reports])
    told("predicted", [report["memory"]["predicted_peak_bytes"] for report in reports])


def each_turn(reports: list[dict[str, Any]], samples: list[tuple[float, int]], ended: float) -> None:
    """Of one job, the last stage first."""
    (report,) = reports
    stages, count = {stage["name"]: stage for stage in report["stages"]}, len(report["images"])
    for name in ("decode", "denoise"):
        begun = ended - stages[name]["run_s"]
        turn = stages[name]["run_s"] / count
        peaks = [0] * count
        for at, size in samples:
            if begun <= at < ended:
                picture = min(int((at - begun) / turn), count - 1)
                peaks[picture] = max(peaks[picture], size)
        told(f"{name}, loaded once in {stages[name]['load_s']:.1f} s", peaks)
        ended = begun - stages[name]["load_s"]


def told(name: str, peaks: list[int]) -> None:
    """A line: how the last picture's peak compares with the first one's, and all of them."""
    each = " ".join(f"{peak / MIB:.1f}" for peak in peaks)
    print(f"{name}: the last {100 * (peaks[-1] / peaks[0] - 1):+.1f} % of the first; MiB of each: {each}")


if __name__ == "__main__":
    main()
