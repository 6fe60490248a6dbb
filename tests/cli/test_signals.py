"""Rows G1 to G4: signals end a run at once, with the right code, and leave neither file nor process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import clean_environment, shell
from tests.conftest import SDCLI

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
        pytest.param(signal.SIGINT, 130, "interrupted", id="G1 Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, "terminated", id="G3 SIGTERM"),
        pytest.param(signal.SIGHUP, 129, "stopped by signal 1", id="G3 SIGHUP"),
    ],
)
@pytest.mark.every(3)
def test_a_signal_ends_the_run_with_one_line_and_nothing_left(
    tiny: Path, work: Path, number: int, code: int, words: str
) -> None:
    with long_run(tiny, work) as (host, workers):
        os.killpg(host.pid, number)  # as a terminal does: to all that it started
        out, err = host.communicate(timeout=20)
        assert (host.returncode, out) == (code, b"")
        last = err.splitlines()[-1].decode()
        assert re.fullmatch(rf"Error: {words}; sdcli resume [\d-]+-[0-9a-f]{{8}} goes on with it", last)
        assert b"Traceback" not in err
        assert gone(workers)
    assert list(work.iterdir()) == []


@pytest.mark.full
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


def comes_to(process: psutil.Process, *wanted: str) -> bool:
    """Whether a process is in one of these states before long."""
    deadline = time.monotonic() + 20
    while process.status() not in wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return process.status() in wanted


@pytest.mark.full
def test_g5_the_worker_stands_still_while_its_host_does(tiny: Path, work: Path) -> None:
    with long_run(tiny, work) as (host, workers):
        host.send_signal(signal.SIGSTOP)
        assert comes_to(workers[0], psutil.STATUS_STOPPED), "it computes and nobody watches"
        host.send_signal(signal.SIGCONT)
        assert comes_to(workers[0], psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING)
        host.terminate()
        _, err = host.communicate(timeout=20)
        assert host.returncode == 143 and err.splitlines()[-1].startswith(b"Error: terminated; sdcli resume ")
        assert gone(workers)


@pytest.mark.full
@pytest.mark.parametrize("stopped", ["host", "host first", "worker", "worker first"])
def test_a_run_that_stood_still_for_longer_than_any_timeout_goes_on(tiny: Path, work: Path, stopped: str) -> None:
    """As a suspended machine, or a job in the background: the same bytes come of it, and nobody misfires."""
    options = ["-m", str(tiny), "-s", "80", "--seed", "5", "--mem-limit", "2GiB", "-v", "-o", "fox.png"]
    host = subprocess.Popen(
        [*SDCLI, "txt2img", "a", *options], cwd=work, env=clean_environment(work), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert host.stderr is not None
    assert any(b" step 1/80 " in line for line in host.stderr)
    processes = [psutil.Process(host.pid), *psutil.Process(host.pid).children()]
    order = processes if stopped.startswith("host") else processes[::-1]
    for process in order if stopped.endswith("first") else order[:1]:
        process.suspend()
    time.sleep(1.5)
    for process in order if stopped.endswith("first") else order[:1]:
        with suppress(psutil.NoSuchProcess):  # the watch lets a worker alone go on, which may be done by now
            process.resume()
    _, err = host.communicate(timeout=200)
    assert host.returncode == 0, err
    assert shell(work, "txt2img", "a", *options[:-1], "again.png").returncode == 0
    assert (work / "fox.png").read_bytes() == (work / "again.png").read_bytes()


@pytest.mark.full
def test_a_terminal_that_is_closed_ends_the_run_and_leaves_it_to_be_resumed(tiny: Path, work: Path) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.chdir(work)
        options = ["txt2img", "a", "-m", str(tiny), "-s", "999", "-W", "256", "-H", "256", "-o", "fox.png"]
        os.execve(sys.executable, [*SDCLI, *options], clean_environment(work))
    seen = b""
    while b"denoise" not in seen and b"step" not in seen:
        seen += os.read(terminal, 4096)
    workers = psutil.Process(child).children(recursive=True)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (129, -signal.SIGHUP)
    assert gone(workers) and list(work.iterdir()) == []


@pytest.mark.full
def test_a_worker_that_stands_still_dies_with_its_host(tiny: Path, work: Path) -> None:
    with long_run(tiny, work) as (host, workers):
        host.send_signal(signal.SIGSTOP)
        assert comes_to(workers[0], psutil.STATUS_STOPPED)
        host.kill()
        host.wait(timeout=20)
        assert gone(workers)


@pytest.mark.full
def test_pictures_that_are_denoised_outlive_ctrl_c(tiny: Path, work: Path) -> None:
    options = ["-m", str(tiny), "-s", "150", "-b", "3", "--seed", "5", "-v", "-o", "fox.png", "--json"]
    host = subprocess.Popen(
        [*PROGRAM, PLAINLY + "from sdcli.cli.main import main; main()", "txt2img", "a", *options],
        cwd=work, env=clean_environment(work), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert host.stderr is not None
    for line in host.stderr:
        if b"picture 3 of 3  step 1/" in line:
            break
    os.killpg(host.pid, signal.SIGINT)
    out, err = host.communicate(timeout=200)
    assert host.returncode == 130 and err.splitlines()[-2] == b"saved before that: 2 of 3"
    assert err.splitlines()[-1].startswith(b"Error: interrupted; sdcli resume ")
    assert sorted(path.name for path in work.iterdir()) == ["fox-1.png", "fox-2.png"]
    assert [image["seed"] for image in json.loads(out)["images"]] == [5, 6]


SUBREAPER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1)
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""
"""Takes in the children of its children that die, as the first process of a container does (PR_SET_CHILD_SUBREAPER)."""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="containers are Linux's")


@linux
@pytest.mark.full
def test_under_a_subreaper_the_worker_dies_with_its_host(tiny: Path, work: Path) -> None:
    argv = ["-P", "-m", "sdcli", "txt2img", "a", "-m", str(tiny), "-s", "999", "-v", "-o", "fox.png"]
    reaper = subprocess.Popen(
        [*PROGRAM, SUBREAPER, *argv], cwd=work, env=clean_environment(work), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert reaper.stderr is not None
        assert any(b" step 1/999 " in line for line in reaper.stderr)
        (host,) = psutil.Process(reaper.pid).children()
        workers = host.children()
        assert workers
        host.kill()
        assert gone(workers)
        assert reaper.wait(20) == 0
    finally:
        reaper.kill()
        reaper.communicate()


@linux
@pytest.mark.skipif(not (hasattr(os, "geteuid") and os.geteuid() == 0), reason="a process namespace needs root")
@pytest.mark.full
def test_the_first_process_of_a_container_draws(tiny: Path, work: Path) -> None:
    argv = ["txt2img", "a", "-m", str(tiny), "-s", "2", "-o", "fox.png"]
    program = ["unshare", "--pid", "--fork", "--mount-proc", *SDCLI]
    done = shell(work, *argv, program=program)
    if b"unshare" in done.stderr:
        pytest.skip("no process namespace can be made here")
    assert done.returncode == 0, done.stderr
    assert (work / "fox.png").is_file()

    blind = shell(work, *argv[:-1], "blind.png", program=["unshare", "--pid", "--fork", *SDCLI])
    assert blind.returncode == 1 and b"/proc is of another process namespace" in blind.stderr


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT], ids=["nohup", "in the background"])
def test_a_signal_that_was_ignored_from_the_start_stays_ignored(ignored: int) -> None:
    script = (
        f"import signal; signal.signal({ignored:d}, signal.SIG_IGN); from sdcli.cli import main;"
        "ours = main.interrupts.interrupt;"
        "main.run = lambda argv: print([n for n in (1, 2, 15) if signal.getsignal(n) is ours]) or 0;"
        "main.main()"
    )
    done = subprocess.run([*PROGRAM, PLAINLY + script], capture_output=True, timeout=60)
    assert done.stdout.decode().strip() == str([number for number in (1, 2, 15) if number != ignored]), done.stderr
