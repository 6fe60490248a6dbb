"""How far a worker gets past the ceiling before the watchdog has killed it, for three ways of allocating.

python benchmarks/overshoot.py [--rounds 5]

The ceiling is 200 MiB over what the tree weighs when the watch begins; the worker then allocates 2 GiB as fast as
it can. Overshoot is the footprint at the moment of the kill, less the ceiling.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from sdcli.host.watchdog import Watchdog
from sdcli.plan.meter import TreeMeter
from sdcli.units import MIB

READY = "import sys; print('ready', flush=True); sys.stdin.readline()\n"

WAYS = {
    "through torch": "import torch\n" + READY + "kept = [torch.ones(2**20) for _ in range(512)]\nsys.stdin.readline()",
    "through a C call that holds the interpreter": (
        "import ctypes, mmap\nroom = mmap.mmap(-1, 2**31, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(room))\n"
        + READY
        + "ctypes.PyDLL(None).memset(ctypes.c_void_p(at), 1, ctypes.c_size_t(2**31))\nsys.stdin.readline()"
    ),
    "through a forked child": (
        "import os\n"
        + READY
        + "if os.fork() == 0:\n    kept = [bytearray(b'x' * 2**22) for _ in range(512)]\nsys.stdin.readline()"
    ),
}


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print("| the worker allocates | overshoot, MiB: median (min-max) |\n| --- | --- |")
    for name, program in WAYS.items():
        seen = [overshoot(program) / MIB for _ in range(rounds)]
        print(f"| {name} | {statistics.median(seen):.0f} ({min(seen):.0f}-{max(seen):.0f}) |", flush=True)


def overshoot(program: str) -> int:
    """One kill."""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdin and worker.stdout
        worker.stdout.readline()
        limit = TreeMeter(os.getpid()).footprint_bytes() + 200 * MIB
        watchdog = Watchdog(os.getpid(), worker.pid, limit, lambda _: None)
        watchdog.start()
        worker.stdin.write(b"go\n")
        worker.stdin.flush()
        worker.wait(timeout=60)
        watchdog.stop()
        assert watchdog.crossing is not None
        return watchdog.crossing.footprint_bytes - limit


if __name__ == "__main__":
    main()
