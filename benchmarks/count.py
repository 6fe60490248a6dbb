"""Many pictures in one run: the peak while the first one is drawn against the peak while the last one is (Linux).

    python benchmarks/count.py [--count 50] [--size 256] [--steps 8] [--limit 600MiB]

synthetic:sd15. The footprint of the process tree is sampled from outside; whose turn it was is told by time: a stage's
share of it for each picture. The heap's gaps grow for some five steps: a picture of fewer has not its whole peak yet.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time

from sdcli.plan.meter import TreeMeter
from sdcli.units import MIB


def main() -> None:
    """Print each picture's peak in both stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--size", default="256")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--limit", default="600MiB")
    options = parser.parse_args()
    size = f"-W {options.size} -H {options.size}"
    job = f"-m synthetic:sd15 -s {options.steps} --seed 1 -b {options.count} {size} --json -q --no-cache"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "sdcli", "txt2img", "fox", *job.split(), "--mem-limit", options.limit]
        process = subprocess.Popen([*command, "-o", folder], stdout=subprocess.PIPE, text=True)
        meter, samples = TreeMeter(process.pid), []
        while process.poll() is None:
            samples.append((time.monotonic(), meter.footprint_bytes()))
            time.sleep(0.005)
        ended = time.monotonic()
        assert process.stdout
        report = json.loads(process.stdout.read())
    stages = {stage["name"]: stage for stage in report["stages"]}
    for name in ("decode", "denoise"):
        begun = ended - stages[name]["run_s"]
        turn = stages[name]["run_s"] / options.count
        peaks = [0] * options.count
        for at, size in samples:
            if begun <= at < ended:
                picture = min(int((at - begun) / turn), options.count - 1)
                peaks[picture] = max(peaks[picture], size)
        print(
            f"{name}: picture 1 {peaks[0] / MIB:.1f} MiB, picture {options.count} {peaks[-1] / MIB:.1f} MiB"
            f" ({100 * (peaks[-1] / peaks[0] - 1):+.1f} %); loaded once, {stages[name]['load_s']:.1f} s"
        )
        print(f"{name}, each picture: {' '.join(f'{peak / MIB:.1f}' for peak in peaks)}")
        ended = begun - stages[name]["load_s"]


if __name__ == "__main__":
    main()
