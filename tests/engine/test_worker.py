"""The worker process, spoken to over its pipes as the host does: it answers, it ends, it never hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Sources
from sdcli.engine.__main__ import PLAINLY, _failure, _ready
from sdcli.errors import BY_NAME, NotFinite
from sdcli.messages import (
    Failed,
    Finished,
    Job,
    Message,
    PictureDone,
    Progress,
    Ready,
    Relieve,
    Start,
    StepDone,
    Synthesize,
    Watched,
    read_message,
    write_message,
)
from tests.conftest import TINY
from tests.support import ASTRONAUT, RESIDENT, job_of, pictures, run_engine

SHORT = replace(ASTRONAUT, steps=2)
NETWORK = "sdcli.families.sd.network"
WAIT_S = 30


class Spoken:
    """A worker on pipes. What it writes to standard error is kept for the end."""

    def __init__(self, prelude: str = "") -> None:
        code = f"{prelude}\nfrom sdcli.engine.__main__ import main\nmain()"
        self.process = subprocess.Popen(
            [sys.executable, "-P", *(["-c", code] if prelude else ["-m", "sdcli.engine"]), NETWORK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self.ready: Ready

    def say(self, *messages: Message) -> None:
        for message in messages:
            write_message(self.stdin, message)

    def hear(self) -> Message | None:
        return read_message(self.stdout)

    def hear_until(self, *last: type[Message]) -> list[Message]:
        heard: list[Message] = []
        while (message := self.hear()) is not None:
            heard.append(message)
            if isinstance(message, last):
                break
        return heard

    def end(self) -> tuple[int, str]:
        """Exit code and standard error, once it has ended by itself."""
        code = self.process.wait(WAIT_S)
        return code, self.stderr.read().decode()


@contextmanager
def spoken(prelude: str = "", start: bool = True) -> Iterator[Spoken]:
    worker = Spoken(prelude)
    try:
        if start:
            worker.say(Start("cpu", 2**31))
            ready = worker.hear()
            assert isinstance(ready, Ready)
            worker.ready = ready
        yield worker
    finally:
        worker.process.kill()
        worker.process.wait()
        for pipe in (worker.stdin, worker.stdout, worker.stderr):
            with suppress(BrokenPipeError):
                pipe.close()


def job(model: Path) -> Job:
    return job_of(model, SHORT, RESIDENT)


def test_a_worker_draws_what_is_drawn_here_and_ends_with_its_host(tiny: Path) -> None:
    with spoken(start=False) as worker:
        worker.say(Start("cpu", None))
        ready = worker.hear()
        assert isinstance(ready, Ready)
        assert ready.torch_version == torch.__version__ and "CPU" in ready.device and ready.device_peak_bytes == 0
        assert ready.flops is None and ready.tripped == ""
        if sys.platform.startswith("linux"):  # the kernel is to kill it and not the host, which can tell of it
            assert int(Path(f"/proc/{worker.process.pid}/oom_score_adj").read_text()) >= 900

        worker.say(job(tiny))
        events = worker.hear_until(Finished)
        assert torch.equal(pictures(events)[0], pictures(run_engine(tiny, SHORT))[0])

        worker.process.send_signal(signal.SIGINT)  # the terminal's Ctrl-C is the host's to answer
        worker.say(Relieve(), job(tiny), Relieve())  # a second job, with relief called for meanwhile
        assert sum(isinstance(event, PictureDone) for event in worker.hear_until(Finished)) == 1
        worker.stdin.close()
        assert worker.end()[0] == 0


def test_a_worker_that_is_asked_to_says_how_fast_it_computes() -> None:
    with spoken(start=False) as worker:
        worker.say(Start("cpu", None, "fp32", threads=1))
        ready = worker.hear()
        assert isinstance(ready, Ready) and ready.flops is not None
        assert 1e8 < ready.flops < 1e15 and ready.threads == 1 and "1 threads" in ready.device


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="there is one thread")
@pytest.mark.full
def test_another_number_of_threads_draws_the_same_picture_up_to_rounding(tiny: Path) -> None:
    drawn = []
    for threads in (1, 2):
        with spoken(start=False) as worker:
            worker.say(Start("cpu", None, threads=threads), job(tiny))
            ready = worker.hear()
            assert isinstance(ready, Ready) and ready.threads == threads
            drawn.append(pictures(worker.hear_until(Finished))[0].int())
    assert (drawn[0] - drawn[1]).abs().max() <= 1


def test_an_empty_pipe_ends_it() -> None:
    with spoken(start=False) as worker:
        worker.stdin.close()
        assert worker.end() == (0, "")
        assert worker.hear() is None


@pytest.mark.parametrize("garbage", [b"garbage\n", b"[1]\n", b'{"type": "Nope", "payload_bytes": 0, "fields": {}}\n'])
def test_garbage_in_place_of_the_start_ends_it(garbage: bytes) -> None:
    with spoken(start=False) as worker:
        worker.stdin.write(garbage)
        worker.stdin.flush()
        failed = worker.hear()
        assert isinstance(failed, Failed) and failed.kind == ""
        assert worker.end()[0] == 1


def test_another_message_in_place_of_the_start_ends_it(tiny: Path) -> None:
    with spoken(start=False) as worker:
        worker.say(job(tiny))
        assert worker.hear() is None
        assert worker.end() == (0, "")


def test_garbage_later_on_ends_it_too(tiny: Path) -> None:
    with spoken() as worker:
        worker.stdin.write(b"\xff\xfe garbage\n")
        worker.stdin.flush()
        assert worker.hear() is None
        code, said = worker.end()
        assert code == 1 and "UnicodeDecodeError" in said and "Fatal Python error" not in said


TRIPS = """
import sdcli.engine.lean_imports as lean
def import_network(module, plainly):
    assert not plainly
    import torch, diffusers  # begun, and gone wrong half-way
    raise AttributeError("an unknown version\\nthat needs what was left out")
lean.import_network = import_network
"""


@pytest.mark.full
def test_where_the_lean_import_trips_the_worker_begins_anew_and_imports_plainly(tiny: Path) -> None:
    with spoken(TRIPS) as worker:
        if sys.platform.startswith("linux"):
            assert PLAINLY in Path(f"/proc/{worker.process.pid}/cmdline").read_text().split("\0")
        assert worker.ready.tripped == "AttributeError: 'an unknown version\\nthat needs what was left out'"
        worker.say(job(tiny))
        events = worker.hear_until(Finished)
        assert torch.equal(pictures(events)[0], pictures(run_engine(tiny, SHORT))[0])


WARNS = """
import warnings
import sdcli.engine.generate as module
right = module.generate
def generate(job, device):
    warnings.warn("mkldnn_matmul failed, switching to BLAS gemm")
    yield from right(job, device)
module.generate = generate
"""


@pytest.mark.full
def test_libraries_warnings_are_not_for_users(tiny: Path) -> None:
    with spoken(WARNS) as worker:
        worker.say(job(tiny))
        assert len(pictures(worker.hear_until(Finished))) == 1
        worker.stdin.close()
        assert worker.end() == (0, "")


NOISE = """
import os
import sdcli.engine.generate as module
right = module.generate
def generate(job, device):
    for event in right(job, device):
        print("a library prints", flush=True)
        os.write(1, b"and a C library writes\\n")
        yield event
module.generate = generate
"""

MADE = f"""
import sdcli.engine.synthesize as made
made.read_config = lambda *_: {TINY}
"""


@pytest.mark.full
def test_what_libraries_print_does_not_get_between_the_messages(tiny: Path, tmp_path: Path) -> None:
    with spoken(NOISE + MADE) as worker:
        worker.say(job(tiny))
        events = worker.hear_until(Finished)
        assert isinstance(events[-1], Finished)
        assert sum(isinstance(event, StepDone) for event in events) == 2

        worker.say(Synthesize("tiny", str(tmp_path / "work")))
        *progress, finished = worker.hear_until(Finished)
        assert isinstance(finished, Finished) and all(isinstance(event, Progress) for event in progress)
        assert (tmp_path / "work" / "manifest.json").is_file()

        worker.stdin.close()
        code, said = worker.end()
        assert code == 0 and said.count("a library prints") == said.count("and a C library writes") == len(events)


RAISES = """
import sdcli.engine.generate as module
def generate(job, device):
    raise KeyError('deep inside')
    yield
module.generate = generate
"""


def test_an_unexpected_exception_arrives_with_its_traceback(tiny: Path) -> None:
    with spoken(RAISES) as worker:
        worker.say(job(tiny))
        (failed,) = worker.hear_until(Failed)
        assert isinstance(failed, Failed)
        assert failed.kind == "" and failed.message == "KeyError: 'deep inside'"
        assert "Traceback" in failed.traceback and "in generate" in failed.traceback
        assert worker.end() == (1, ""), "it ends quietly, and not in an abort"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "CeilingCrossed", "no memory left"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), "CeilingCrossed", "no memory left"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "SdcliError", "--mem-limit"),
        (MemoryError(), "SdcliError", "--mem-limit"),
        (NotFinite("a line"), "NotFinite", "a line"),
        (ImportError("no torch"), "", "ImportError: no torch"),
        (RuntimeError("shapes differ"), "", "RuntimeError: shapes differ"),
    ],
)
def test_the_host_is_told_the_kind_of_failure(error: Exception, kind: str, words: str) -> None:
    failed = _failure(error)
    assert failed.kind == kind and words in failed.message
    assert not kind or kind in BY_NAME
    assert type(error).__name__ in failed.traceback


def test_a_failure_of_ours_keeps_its_kind_and_its_line(tmp_path: Path) -> None:
    with spoken() as worker:
        worker.say(Job(SHORT, RESIDENT, Sources(str(tmp_path / "gone")), "fp32"))
        (failed,) = worker.hear_until(Failed)
        assert isinstance(failed, Failed)
        assert failed.kind == "SdcliError" and "No such file or directory" in failed.message
        assert worker.end() == (1, "")


def test_torch_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text('raise ImportError("this torch is broken")')
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with spoken(start=False) as worker:
        worker.say(Start("cpu", None))
        failed = worker.hear()
        assert isinstance(failed, Failed) and "torch" in failed.message and failed.kind == ""
        assert worker.end()[0] == 1


def test_a_host_that_no_longer_reads_ends_it_quietly(tiny: Path) -> None:
    with spoken() as worker:
        worker.stdout.close()
        worker.say(job(tiny))
        assert worker.end() == (1, "")


def status_comes_to(process: psutil.Process, wanted: str) -> bool:
    """Whether the process is in this state before long."""
    deadline = time.monotonic() + WAIT_S
    while process.status() != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    return process.status() == wanted


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.full
def test_a_worker_that_is_not_watched_any_more_stands_still_until_it_is(tiny: Path) -> None:
    with spoken() as worker:
        process = psutil.Process(worker.process.pid)
        time.sleep(1)
        assert process.status() != psutil.STATUS_STOPPED, "nobody has watched it yet: it may be making a model"
        for _ in range(10):
            worker.say(Watched())
            time.sleep(0.1)
            assert process.status() != psutil.STATUS_STOPPED
        assert status_comes_to(process, psutil.STATUS_STOPPED)
        worker.say(job(tiny), Watched())
        process.resume()
        heard = []
        while not isinstance(message := worker.hear(), Finished):
            heard.append(message)
            worker.say(Watched())
        assert sum(isinstance(event, PictureDone) for event in heard) == 1


def test_a_gpu_without_room_to_be_measured_is_ready_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def crowded(*_: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("sdcli.engine.pace.operations_a_second", crowded)
    device = CpuDevice()
    assert _ready(device, Start("cpu", None, measure="fp32"), "").flops is None
    monkeypatch.undo()
    assert _ready(device, Start("cpu", None, measure="fp32"), "").flops
