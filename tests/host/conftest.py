"""Workers that are scripts, and what is asked of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from sdcli.app.record import Task
from sdcli.domain import Request
from sdcli.models.opened import open_model
from sdcli.plan.ceiling import Ceiling
from sdcli.plan.meter import TreeMeter

REQUEST = Request("a red fox", "", 64, 64, 4, 7.5, 11, 1)

PROLOGUE = """
import os, sys, time
from sdcli.messages import *
say = lambda message: write_message(sys.stdout.buffer, message)
def hear():
    while isinstance(message := read_message(sys.stdin.buffer), (Relieve, Watched)):
        pass
    return message
assert isinstance(hear(), Start)
"""


@pytest.fixture(autouse=True)
def no_worker_left() -> Iterator[None]:
    """However a run ends, its worker has ended."""
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) - before == set()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the worker's place."""

    def put(body: str) -> None:
        def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            assert command[:4] == [sys.executable, "-P", "-m", "sdcli.engine"]
            return subprocess.Popen([sys.executable, "-P", "-c", PROLOGUE + body], **options)

        monkeypatch.setattr("sdcli.host.worker.subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))

    return put


def task(model: Path, limit_bytes: int | None = None, request: Request = REQUEST, **more: Any) -> Task:
    return Task(open_model("tiny", model), request, "cpu", "fp32", Ceiling(limit_bytes, "asked for"), **more)


def standing() -> int:
    """What the tests themselves weigh, which the ceiling covers too."""
    return TreeMeter(os.getpid()).footprint_bytes()
