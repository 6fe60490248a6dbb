"""Real-size runs of the program itself, on synthetic:sd15."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdcli import machine
from tests.conftest import SDCLI

SIDE = 256 if machine.choose_dtype("cpu", "auto")[0] == "fp32" else 512
"""Of a picture: 512 takes ten minutes a run on some processors without bf16."""

PROMPT = "a photograph of an astronaut riding a horse"


class Program:
    """Command lines and the environment that finds the synthetic model where the tests made it."""

    def __init__(self, model: Path) -> None:
        self.environment = {**os.environ, "SDCLI_CACHE": str(model.parent.parent)}

    def line(self, command: str, *options: str) -> list[str]:
        """`command` with the job that all tests run: two steps, guidance on, a fixed seed."""
        size = f"{SIDE}x{SIDE}"
        job = ["-m", "synthetic:sd15", "--size", size, "-s", "2", "--seed", "7", "--device", "cpu", "--json", "-q"]
        whole = [] if command == "bench" else ["--no-cache"]  # every stage is run
        return [*SDCLI, command, PROMPT, *job, *whole, *options]


@pytest.fixture
def program(sd15: Path) -> Program:
    """The program, with the model there."""
    return Program(sd15)
