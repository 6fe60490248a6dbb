"""Real-size runs of the program itself, on synthetic:sd15."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sdcli import machine
from sdcli.plan.speeds import typical_speed
from tests.conftest import SDCLI

SIDE = 256 if machine.choose_dtype("cpu", "auto")[0] == "fp32" else 512
"""Of a picture: 512 takes ten minutes a run on some processors without bf16."""

SLOW_DISK_BYTES = 2e9
"""A second, that a prepared copy is read at."""

PROMPT = "a photograph of an astronaut riding a horse"


def slow_disk(cache: Path) -> None:
    """Have the machine's disk be known to be slow."""
    dtype = machine.choose_dtype("cpu", "auto")[0]
    speed = replace(typical_speed("cpu", dtype), prepared_bytes=SLOW_DISK_BYTES)
    cache.mkdir(exist_ok=True)
    (cache / "speeds.json").write_text(json.dumps({f"cpu {dtype}": asdict(speed)}))


class Program:
    """Command lines and the environment that finds the synthetic model where the tests made it."""

    def __init__(self, model: Path) -> None:
        self._cache = model.parent.parent
        self.environment = {**os.environ, "SDCLI_CACHE": str(self._cache)}

    def line(self, command: str, *options: str) -> list[str]:
        """`command` with the job that all tests run: two steps, guidance on, a fixed seed.

        It is run on a machine whose disk is known to be slow, so that two steps pay for loading weights.
        """
        slow_disk(self._cache)
        size = f"{SIDE}x{SIDE}"
        job = ["-m", "synthetic:sd15", "--size", size, "-s", "2", "--seed", "7", "--device", "cpu", "--json", "-q"]
        whole = [] if command == "bench" else ["--no-cache"]  # every stage is run
        return [*SDCLI, command, PROMPT, *job, *whole, *options]


@pytest.fixture
def program(sd15: Path) -> Program:
    """The program, with the model there."""
    return Program(sd15)
