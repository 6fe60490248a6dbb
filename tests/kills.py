"""Runs that are killed at any instant, of the host, of the worker or of both, and what `sdcli resume` makes of them."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import SDCLI

WHO = ("worker", "host", "both")

KINDS: dict[str, tuple[str, ...]] = {
    "txt2img": ("txt2img", "a red fox", "-s", "40"),
    "img2img": ("img2img", "a red fox", "--init", "../init.png", "-s", "60", "--strength", "0.7"),
    "count 4": ("txt2img", "a red fox", "-s", "16", "-b", "4"),
}

SIZE = ("-W", "128", "-H", "128", "--seed", "11", "-v")


@dataclass(frozen=True)
class Killing:
    """One kind of run of a model: in folders of its own in `home`, with one cache."""

    home: Path
    model: Path
    kind: str

    def command(self) -> list[str]:
        """The whole command line."""
        command, *more = KINDS[self.kind]
        return [*SDCLI, command, *more, "-m", str(self.model), *SIZE]

    @property
    def environment(self) -> Mapping[str, str]:
        """As a user has it who has set nothing of ours."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SDCLI_", "PYTHON"))}
        return kept | {"SDCLI_CACHE": str(self.home / "cache"), "XDG_CONFIG_HOME": str(self.home / "config")}

    def run(self, folder: str, command: list[str]) -> subprocess.CompletedProcess[bytes]:
        """A command line to its end."""
        work = self.home / folder
        work.mkdir(exist_ok=True)
        return subprocess.run(command, cwd=work, env=self.environment, capture_output=True, timeout=6000)

    def timed(self, folder: str) -> float:
        """Seconds that a run takes that nobody ends, from when it has a plan."""
        host = self._begun(folder)
        began = time.monotonic()
        _, said = host.communicate(timeout=6000)
        assert host.returncode == 0, said
        return time.monotonic() - began

    def _begun(self, folder: str) -> subprocess.Popen[bytes]:
        """A run that has a plan."""
        work = self.home / folder
        work.mkdir()
        host = subprocess.Popen(
            self.command(), cwd=work, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert host.stderr is not None
        next((line for line in host.stderr if line.startswith(b"plan: ")), None)
        return host

    def killed(self, folder: str, who: str, after_s: float) -> bool:
        """Start it and kill; whether there was something to kill."""
        host, killed = self._begun(folder), False
        try:
            time.sleep(after_s)
            lives = host.poll() is None
            workers = psutil.Process(host.pid).children() if lives else []
            for victim in [*(workers if who != "host" else []), *([host] if lives and who != "worker" else [])]:
                with suppress(psutil.NoSuchProcess):
                    victim.send_signal(signal.SIGKILL)
                    killed = True
            _, said = host.communicate(timeout=600)
        finally:
            host.kill()
            host.communicate()
        if host.returncode == 1:  # the worker alone was killed
            steps = b"step 1/" in said
            assert re.search(
                rb"(^|\n)Error: [^\n]*" + rb"; sdcli resume \S+ goes on with it" * steps + rb"\n$", said
            ), said
        return killed

    def resumed(self, folder: str) -> dict[str, bytes]:
        """The pictures when all that is unfinished has been gone on with, from another folder."""
        done = self.run("elsewhere", [*SDCLI, "resume", "-q"])
        if done.returncode:
            assert b"no run is unfinished" in done.stderr, done.stderr
            if not (self.home / folder / "outputs").exists():  # it was killed before there was a plan
                done = self.run(folder, self.command())
                assert done.returncode == 0, done.stderr
        assert list((self.home / "cache" / "runs").iterdir()) == []
        return pictures_in(self.home / folder)


def pictures_in(work: Path) -> dict[str, bytes]:
    """All files, of which none is a temporary one."""
    files = {path.name: path.read_bytes() for path in work.glob("outputs/*")}
    assert all(name.endswith(".png") for name in files), files.keys()
    return files


def go_through(killing: Killing, who: str, times: int, seed: int) -> int:
    """Kill so many runs, each at another instant, and go on with each. Returns how many were alive until then."""
    instants, alive = random.Random(f"{seed} {who} {killing.kind}"), 0
    killing.timed("warm")  # it counts, and remembers
    lasts_s, whole = killing.timed("whole"), pictures_in(killing.home / "whole")
    for number in range(times):
        folder = f"{who}-{number}"
        alive += killing.killed(folder, who, instants.uniform(0, lasts_s))
        assert killing.resumed(folder) == whole, f"{who}, {killing.kind}, instant {number} of seed {seed}"
    return alive
