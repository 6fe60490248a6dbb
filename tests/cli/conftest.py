"""Running the command line: in this process where no worker is needed, and as a user's shell would where one is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sdcli import machine
from sdcli.app.record import RunRecord, Task, Wanted
from sdcli.cli.main import run
from sdcli.images.write import Destination
from sdcli.units import GIB
from tests.conftest import SDCLI
from tests.support import counts_at_hand

__all__ = ["counts_at_hand"]


@dataclass(frozen=True)
class Outcome:
    """How one command line ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *said: str) -> None:
        """One line on stderr, nothing on stdout, and this exit code."""
        assert self.code == code, self.err
        assert self.out == ""
        assert self.err.startswith("Error: ") and self.err.endswith("\n") and self.err.count("\n") == 1
        line = self.err.removesuffix("\n")
        assert line.isprintable() and "Traceback" not in line and "this is a bug" not in line and len(line) <= 420
        for words in said:
            assert words in line


Command = Callable[..., Outcome]


@pytest.fixture
def sdcli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process; one that would start a worker fails."""

    def no_worker(*_: object) -> None:
        raise AssertionError("a worker was started")

    for module in ("making", "watched"):
        monkeypatch.setattr(f"sdcli.host.{module}.Worker", no_worker)

    def command(*argv: str | Path) -> Outcome:
        code = run([str(argument) for argument in argv])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@dataclass(frozen=True)
class Asked:
    """What a command line came to, just before work would begin."""

    task: Task
    wanted: Wanted
    as_json: bool

    @property
    def destination(self) -> Destination:
        """Where the pictures go."""
        return self.wanted.destination


@pytest.fixture
def asked(sdcli: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Asked]:
    """Runs a command line up to where the work would begin, on a machine of 64 GiB without a GPU."""
    taken: list[Asked] = []

    def take(record: RunRecord, wanted: Wanted, as_json: bool, *_: object) -> None:
        taken.append(Asked(record.task, wanted, as_json))

    monkeypatch.setattr("sdcli.cli.draw.carry_out", take)
    monkeypatch.setattr(machine, "physical_memory_bytes", lambda: 64 * GIB)
    monkeypatch.setattr(machine, "container_limit_bytes", lambda: None)
    monkeypatch.setattr(machine, "available_devices", lambda: {"cpu": "always there"})

    def ask(*argv: str | Path) -> Asked:
        outcome = sdcli(*argv)
        assert outcome.code == 0, outcome.err
        return taken.pop()

    return ask


@pytest.fixture
def work(own_home: None) -> Path:
    """The empty folder that the test runs in."""
    return Path.cwd()


def clean_environment(work: Path) -> dict[str, str]:
    """The environment of a user who has set nothing of ours, with cache and config beside the folder `work`."""
    home = work.with_name(work.name + "-home")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SDCLI_", "PYTHON", "LC_"))}
    return kept | {"SDCLI_CACHE": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config")}


def shell(
    work: Path, *argv: str | Path, program: Sequence[str] = SDCLI, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Runs the program as a shell would, in the folder `work`, until it ends."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if "input" not in options:
        streams["stdin"] = subprocess.DEVNULL
    environment = clean_environment(work) | dict(env or {})
    return subprocess.run([*program, *argv], cwd=work, env=environment, timeout=120, **streams | options)


@dataclass(frozen=True)
class Finished:
    """One real run: the folder it ran in and how it ended."""

    work: Path
    done: subprocess.CompletedProcess[bytes]


FOX = 'a red fox 🦊, "quoted"\nin two lines: עברית \u202e e\u0301'
"""A prompt with all that a prompt may have."""


@pytest.fixture(scope="session")
def reported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A txt2img run with --json, in the poorest of environments: a C locale, ASCII streams, a proxy that is junk."""
    work = tmp_path_factory.mktemp("reported")
    (work / "prompt.txt").write_text(FOX + "\n", "utf-8")
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    junk = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://nowhere.invalid:1") | {"COLUMNS": "1"}
    argv: list[str | Path] = ["txt2img", "--prompt-file", "prompt.txt", "--model", tiny, "--json", "-o", "fox.png"]
    argv += ["-W", "72", "-H", "64", "-s", "3", "-g", "3.5", "-n", "ugly, blurred", "--seed", "7", "--dtype", "fp32"]
    return Finished(work, shell(work, *argv, env=poor | junk))
