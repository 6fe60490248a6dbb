"""Rows G1 to G4: signals end a run at once, with the right code, and leave neither file nor process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import clean_environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


PLAINLY = "import signal\nfor number in (1, 2, 15): signal.signal(number, signal.SIG_DFL)\n"
"""What a program does first: a test run that was started in the background ignores Ctrl-C, and so would it."""

PROGRAM = [sys.executable, "-P", "-c"]


@contextmanager
def long_run(tiny: Path, work: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A run that would take minutes, at its first step, and its worker's processes."""
    options = ["-m", str(tiny), "-s", "999", "-W", "256", "-H", "256", "-v", "-o", "fox.png"]
    host = subprocess.Popen(
        [*PROGRAM, PLAINLY + "from sdcli.cli.main import main; main()", "txt2img", "a", *options],
        cwd=work, env=clean_environment(work), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert host.stderr is not None
        for line in host.stderr:
            if b" step 1/999 " in line:
                break
        workers = psutil.Process(host.pid).children(recursive=True)
        assert workers, "the run ended before its first step"
        yield host, workers
    finally:
        host.kill()
        host.communicate()


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all have ended, given 10 seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        pytest.param(signal.SIGINT, 130, b"interrupted", id="G1 Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, b"terminated", id="G3 SIGTERM"),
        pytest.param(signal.SIGHUP, 129, b"stopped by signal 1", id="G3 SIGHUP"),
    ],
)
def test_a_signal_ends_the_run_with_one_line_and_nothing_left(
    tiny: Path, work: Path, number: int, code: int, words: bytes
) -> None:
    with long_run(tiny, work) as (host, workers):
        os.killpg(host.pid, number)  # as a terminal does: to all that it started
        out, err = host.communicate(timeout=20)
        assert (host.returncode, out) == (code, b"")
        assert err.splitlines()[-1] == b"Error: " + words and b"Traceback" not in err
        assert gone(workers)
    assert list(work.iterdir()) == []


def test_g4_the_worker_dies_with_a_host_that_is_killed(tiny: Path, work: Path) -> None:
    with long_run(tiny, work) as (host, workers):
        host.kill()
        host.wait(timeout=20)
        assert gone(workers)
    assert list(work.iterdir()) == []


CLEANING = """
import signal, sys, time
from sdcli.cli import main

def run(argv):
    try:
        print("working", flush=True)
        signal.pause()
    finally:
        print("cleaning", flush=True)
        time.sleep(600)

main.run = run
main.main()
"""
"""A run whose cleaning up takes for ever."""


@pytest.mark.parametrize(("first", "second", "code"), [("SIGINT", "SIGINT", 130), ("SIGTERM", "SIGHUP", 129)])
def test_g2_a_second_signal_does_not_wait_for_the_cleaning_up(first: str, second: str, code: int) -> None:
    host = subprocess.Popen([*PROGRAM, PLAINLY + CLEANING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert host.stdout is not None
    for line, name in ((b"working\n", first), (b"cleaning\n", second)):
        assert host.stdout.readline() == line
        time.sleep(0.05)
        host.send_signal(getattr(signal, name))
    out, err = host.communicate(timeout=20)
    assert (host.returncode, out, err) == (code, b"", b"")


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "in the background"])
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(ignored: int) -> None:
    script = (
        f"import signal; signal.signal({ignored:d}, signal.SIG_IGN); from sdcli.cli import main;"
        "main.run = lambda argv: print([n for n in (1, 2, 15) if signal.getsignal(n) is main._interrupt]) or 0;"
        "main.main()"
    )
    done = subprocess.run([*PROGRAM, PLAINLY + script], capture_output=True, timeout=60)
    assert done.stdout.decode().strip() == str([number for number in (1, 2, 15) if number != ignored]), done.stderr
