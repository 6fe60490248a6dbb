"""Whatever operation on the disk fails, no file that was there changes, no picture is lost, and resume finishes it."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdcli.app.unfinished import sweep
from sdcli.cli.main import run
from sdcli.settings import cache_dir
from tests.cli.test_resume import WORKER
from tests.conftest import SDCLI
from tests.faults import ERRORS, OPERATIONS, Fault
from tests.host.conftest import PROLOGUE, script
from tests.support import counts_at_hand

__all__ = ["counts_at_hand", "script"]

STEPS = WORKER.replace(
    '        say(LatentsDone(image, b"latents|%d" % image))',
    "        for step in range(job.request.steps - 1):\n"
    '            say(StepDone(image, step + 1, job.request.steps, 0.1, 0, b"step|%d" % image))\n'
    '        say(LatentsDone(image, b"latents|%d" % image))',
)
"""The same worker with steps."""

COMMAND = ["txt2img", "a fox", "-s", "3", "-b", "2", "--seed", "5", "-q"]

NAMES = ("a-fox-5-2.png", "a-fox-6.png")
"""The first one's name is taken."""


@pytest.fixture
def command(tiny: Path) -> list[str]:
    """Two pictures."""
    return [*COMMAND, "-m", str(tiny)]


@pytest.fixture
def whole(command: list[str], script: Callable[[str], None]) -> dict[str, bytes]:
    """All files of a run on a disk that is sound."""
    script(STEPS)
    return finished(command)


def finished(command: list[str]) -> dict[str, bytes]:
    anew()
    assert run(command) == 0
    return outputs()


def anew() -> None:
    """The folder as it is before each run: a picture of somebody's is there."""
    shutil.rmtree("outputs", ignore_errors=True)
    os.mkdir("outputs")
    Path("outputs", "a-fox-5.png").write_bytes(b"somebody's")


def outputs() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("outputs").iterdir() if not is_temporary(path)}


def is_temporary(path: Path) -> bool:
    """Whether it is what a killed run leaves for a later one to sweep."""
    return path.name.startswith(".sdcli-")


def require_sound(whole: dict[str, bytes]) -> None:
    """What is there is whole."""
    assert outputs().items() <= whole.items(), outputs().keys()


def go_on(whole: dict[str, bytes], command: list[str]) -> None:
    """Resume it if it is unfinished; a run that was killed before it had a plan is begun anew."""
    sweep()
    if list((cache_dir() / "runs").glob("*/job.json")):
        assert run(["resume", "-q"]) == 0
    elif outputs() != whole:
        assert list(outputs()) == ["a-fox-5.png"], "pictures are lost"
        assert run(command) == 0
    assert outputs() == whole
    assert list((cache_dir() / "runs").glob("*/job.json")) == []


def try_out(fault: Fault, whole: dict[str, bytes], command: list[str], capfd: pytest.CaptureFixture[str]) -> bool:
    """One run with the fault, and what comes after it. Whether the fault came at all."""
    anew()
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        fault.install(patch)
        code = run(command)
    err = capfd.readouterr().err
    assert code in (0, 1) and "Traceback" not in err and "this is a bug" not in err, err
    assert (code == 0) == (err == ""), err
    require_sound(whole)
    assert not [path for path in Path("outputs").iterdir() if is_temporary(path)] or fault.lasts
    rescued = cache_dir() / "rescued"
    if code == 1:
        known = ("sdcli resume", "cannot write to the folder", *(["nor can the cache keep it"] if fault.lasts else []))
        assert err.count("\n") == 1 and any(words in err for words in known), err
        kept = {path.read_bytes() for path in rescued.iterdir()} if rescued.is_dir() else set()
        assert kept <= set(whole.values())
    go_on(whole, command)
    shutil.rmtree(rescued, ignore_errors=True)
    return fault.came


@pytest.mark.skipif(sys.platform == "win32", reason="locks of Unix")
@pytest.mark.parametrize("lock", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_on_a_disk_without_links_locks_and_modes_all_is_drawn(
    whole: dict[str, bytes], command: list[str], capfd: pytest.CaptureFixture[str], lock: str
) -> None:
    """exFAT and SMB have none of them, and no sync of a folder."""
    real = os.fsync

    def fail(name: str) -> Callable[..., None]:
        def failing(*_: object, **__: object) -> None:
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

        return failing

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fail("EINVAL")()
        real(descriptor)

    anew()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("link", "chmod"):
            patch.setattr(os, name, fail("EPERM"))
        patch.setattr(os, "fsync", sync)
        patch.setattr("fcntl.flock", fail(lock))
        assert run(command) == 0
    assert outputs() == whole and capfd.readouterr().err == ""
    assert list((cache_dir() / "runs").glob("*/job.json")) == []


@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_fails_at_some_operation_loses_nothing(
    whole: dict[str, bytes], command: list[str], capfd: pytest.CaptureFixture[str], operation: str, lasts: bool
) -> None:
    for at in (2, 6):
        assert try_out(Fault(operation, at, "no space", lasts), whole, command, capfd), at


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_fails_at_any_operation_loses_nothing(
    whole: dict[str, bytes],
    command: list[str],
    capfd: pytest.CaptureFixture[str],
    operation: str,
    how: str,
    lasts: bool,
) -> None:
    at = 1
    while try_out(Fault(operation, at, how, lasts), whole, command, capfd):
        at += 1
    assert at > 6


PROGRAM = """
import subprocess, sys
from types import SimpleNamespace
import pytest
from sdcli.cli.main import run
from tests.faults import Fault

WORKER = sys.argv[3]

def start(command, **options):
    return subprocess.Popen([sys.executable, "-P", "-c", WORKER], **options)

patch = pytest.MonkeyPatch()
patch.setattr("sdcli.host.worker.subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
fault = Fault(sys.argv[1], int(sys.argv[2]), "kill")
fault.install(patch)
sys.exit(run(sys.argv[4:]))
"""
"""A run with a script for a worker, which is killed at some operation."""


@pytest.fixture
def counted(command: list[str], tmp_path: Path) -> None:
    """The real worker's counts are in the cache, where a process of its own finds them."""
    done = subprocess.run([*SDCLI, *command, "-o", str(tmp_path / "real.png")], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def killed_at(operation: str, at: int, whole: dict[str, bytes], command: list[str]) -> bool:
    """A process that is killed there, and what comes after it. Whether it came so far."""
    anew()
    root = Path(__file__).parent.parent.parent
    argv = [sys.executable, "-c", PROGRAM, operation, str(at), PROLOGUE + STEPS, *command]
    done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, timeout=60)
    assert done.returncode in (0, -9), done.stderr
    require_sound(whole)
    go_on(whole, command)
    return done.returncode == -9


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.full
def test_a_run_that_is_killed_at_some_operation_is_finished(
    whole: dict[str, bytes], command: list[str], counted: None
) -> None:
    for operation, at in (("write", 8), ("fsync", 6), ("rename", 8)):
        assert killed_at(operation, at, whole, command)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_run_that_is_killed_at_any_operation_is_finished(
    whole: dict[str, bytes], command: list[str], counted: None, operation: str
) -> None:
    at = 1
    while killed_at(operation, at, whole, command):
        at += 1
    assert at > 6
