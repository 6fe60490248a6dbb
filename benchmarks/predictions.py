"""Predicted against measured peaks of synthetic:sd15 on the CPU, over sizes and ceilings.

python benchmarks/predictions.py [--sizes 256x256,512x512,…] [--limits 800MiB,1GiB,2GiB,none]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

from sdcli.units import MIB


def main() -> None:
    """Print a row a cell: worst is the largest error of all stages' sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256x256,512x512,768x512,640x384,768x768")
    parser.add_argument("--limits", default="800MiB,1GiB,2GiB,none")
    options = parser.parse_args()
    print("| size | ceiling | denoiser | predicted MiB | measured MiB | over |\n| --- | --- | --- | --- | --- | --- |")
    for size in options.sizes.split(","):
        width, height = size.split("x")
        command = f"{sys.executable} -P -m sdcli bench --no-warmup --json -q --steps 2 -W {width} -H {height}"
        done = subprocess.run(
            [*command.split(), "--mem-limit", options.limits], capture_output=True, text=True, check=True
        )
        for limit, run in zip(options.limits.split(","), json.loads(done.stdout)["runs"], strict=True):
            memory, plan = run["memory"], run["plan"]
            if run["outcome"] != "ok":
                print(f"| {size} | {limit} | | | | {run['outcome']} |", flush=True)
                continue
            predicted, measured = memory["predicted_peak_bytes"], memory["peak_bytes"]
            print(
                f"| {size} | {limit} | {plan['residency']}, {plan['guidance']} | {predicted / MIB:.0f}"
                f" | {measured / MIB:.0f} | {100 * (predicted / measured - 1):+.0f} % |",
                flush=True,
            )


if __name__ == "__main__":
    main()
