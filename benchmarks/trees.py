"""A command run and watched from outside: what it printed, how long it took, and the peaks of its tree."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from sdcli.plan.meter import TreeMeter

ROOT = Path(__file__).parent.parent

PAUSE_S = 0.02


@dataclass(frozen=True)
class Watched:
    """A command that has ended. Both peaks are sums over its whole tree of processes."""

    code: int
    out: str
    errors: str
    seconds: float
    footprint_bytes: int
    rss_bytes: int

    @property
    def trouble(self) -> str:
        """The last thing that it said."""
        return (self.errors.strip() or self.out.strip() or f"exit code {self.code}").splitlines()[-1]


def watched(command: list[str], scratch: Path) -> Watched:
    """Run a command to its end, in the repository's root. What it says lies in `scratch` meanwhile: no pipe fills."""
    with open(scratch / "out", "w+b") as out, open(scratch / "errors", "w+b") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=ROOT)
        meter, footprint, rss = TreeMeter(process.pid), 0, 0
        while process.poll() is None:
            now = meter.read()
            footprint, rss = max(footprint, now.footprint_bytes), max(rss, now.rss_bytes)
            time.sleep(PAUSE_S)
        seconds = time.perf_counter() - started
        out.seek(0)
        errors.seek(0)
        texts = out.read().decode(errors="replace"), errors.read().decode(errors="replace")
    return Watched(process.returncode, *texts, seconds, footprint, rss)
