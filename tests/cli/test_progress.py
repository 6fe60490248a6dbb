"""What a person sees: plain lines in a file, a bar that moves on a terminal, nothing when quiet."""

from __future__ import annotations

import io
import os
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sdcli.app.record import RunRecord, StageRecord, Task
from sdcli.cli import progress, say
from sdcli.cli.progress import AmountLine, MakingLine, ProgressLines
from sdcli.domain import Plan, Request, StageNeed
from sdcli.host.watchdog import Peaks, Watchdog
from sdcli.messages import Finished, Message, Notice, PictureDone, Progress, Ready, StageBegan, StageEnded, StepDone
from sdcli.plan.ceiling import Ceiling
from sdcli.plan.planner import Planned
from sdcli.units import MIB

REQUEST = Request("a", "", 64, 64, 2, 7.5, 1, 2)


class FakeWatchdog:
    """One that has measured 300 MiB."""

    footprint_bytes = 300 * MIB
    peaks = Peaks(300 * MIB, samples=5, by_stage={"denoise": 300 * MIB})


def show_run(limit_bytes: int | None, *, quiet: bool = False, verbose: bool = False, tripped: str = "") -> str:
    """Shows the events of a run of two pictures, and returns the last line of all."""
    ceiling = Ceiling(limit_bytes, "asked for")
    model = cast(Any, SimpleNamespace(ref="tiny"))
    record = RunRecord(Task(model, REQUEST, "cpu", "fp32", ceiling))
    plan = Plan("partial", MIB, "batched", MIB, ("half stays", "one pass"))
    record.planned = Planned(plan, (StageNeed("denoise", 400 * MIB),), 2.34)
    record.device, record.torch_version, record.baseline_bytes = "a CPU", "2.0", 200 * MIB
    show = ProgressLines(record, ceiling, quiet=quiet, verbose=verbose)
    show(Ready("a CPU", "2.0", tripped=tripped), cast(Watchdog, FakeWatchdog()))
    record.stages.append(StageRecord("denoise", load_s=1.0))
    events: list[Message] = [StageBegan("denoise")]
    for image in (0, 1):
        record.steps += [StepDone(image, 1, 2, 0.5, 0), StepDone(image, 2, 2, 0.25, 0)]
    events += [*record.steps, Notice("something was left out"), StageEnded("denoise", 2.0)]
    events += [Finished(), Ready("a CPU", "2.0"), PictureDone(0, 1, 64, 64)]  # a worker of its own decodes
    for event in events:
        show(event, cast(Watchdog, FakeWatchdog()))
    show.clear()
    record.total_s, record.peak_bytes = 3.2, 300 * MIB
    return show.summary()


def open_terminal(monkeypatch: pytest.MonkeyPatch, columns: str = "60", term: str = "xterm") -> io.StringIO:
    """Makes stderr a terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    return stream


def test_e5_without_a_terminal_there_is_a_plain_line_a_stage(capfd: pytest.CaptureFixture[str]) -> None:
    assert show_run(2800 * MIB) == "done in 3.2 s, peak 300 MiB of 2.73 GiB"
    assert capfd.readouterr().err.splitlines() == [
        "tiny on cpu in fp32, 64x64, seed 1 to 2",
        "fits: predicted peak 400 MiB of 2.73 GiB, denoiser partial, about 2.3 s a step",
        "note: something was left out",
        "denoise           3.0 s  4 steps, 0.50 s each  peak 300 MiB",
    ]


def test_without_a_ceiling_none_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert show_run(None) == "done in 3.2 s, peak 300 MiB"
    assert (
        capfd.readouterr().err.splitlines()[1] == "fits: predicted peak 400 MiB, denoiser partial, about 2.3 s a step"
    )


def test_verbose_says_the_reasons_and_every_step(capfd: pytest.CaptureFixture[str]) -> None:
    show_run(None, verbose=True)
    lines = capfd.readouterr().err.splitlines()
    assert lines[1:4] == ["a CPU, torch 2.0, baseline 200 MiB", "plan: half stays", "plan: one pass"]
    assert lines[5] == "denoise        picture 1 of 2  step 1/2  0.50 s/step  300 MiB"
    assert sum(" step " in line for line in lines) == 4


def test_verbose_says_that_libraries_were_imported_whole_and_why(capfd: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        show_run(None, verbose=verbose, tripped="AttributeError: 'no such thing'")
        said = capfd.readouterr().err
        assert ("imported whole" in said and "AttributeError: 'no such thing'\n" in said) is verbose


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal(monkeypatch)
    show_run(None, quiet=True, verbose=True)
    MakingLine("synthetic:sd15", True).show(Progress(1, 2))
    assert terminal.getvalue() == "" and capfd.readouterr() == ("", "")


def test_on_a_terminal_the_bar_moves_within_its_width_and_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    show_run(2800 * MIB)
    written = terminal.getvalue()
    assert "\rdenoise        picture 2 of 2  [####################] ste" in written
    assert "\rdecode         starting its own worker ..." in written
    moving = [part for line in written.split("\n") for part in line.split("\r") if not part.startswith("fits:")]
    assert all(len(part) < 60 for part in moving)
    wiped, end = written.split("\r")[-2:]
    assert wiped.strip() == end == "" and len(wiped) >= len("decode         starting its own worker ...")
    before, _, rest = written.partition("note: something was left out\n")
    assert before.endswith("\r" + " " * 59 + "\r") and rest
    wide = open_terminal(monkeypatch, columns="200")
    show_run(2800 * MIB)
    assert "[####################] step 2/2  0.25 s/step  300 MiB of 2.73 GiB\r" in wide.getvalue()


@pytest.mark.parametrize("columns", ["1", "0", "-5", "junk"])
def test_e5_a_terminal_of_no_width_is_no_failure(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    terminal = open_terminal(monkeypatch, columns=columns)
    show_run(None)
    assert "\r" in terminal.getvalue()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_e5_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    terminal = open_terminal(monkeypatch, term=term)
    show_run(None)
    assert "\r" not in terminal.getvalue() and terminal.getvalue().count("\n") == 4


def test_making_a_model_shows_its_beginning_and_its_end(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    line = MakingLine("synthetic:sd15", False).show
    for done in (1, 2, 3):
        line(Progress(done * 512 * MIB, 2048 * MIB))
        now[0] += 3
    line(Progress(2048 * MIB, 2048 * MIB))
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "making synthetic:sd15, once: 512 MiB of 2.00 GiB"
    assert [text.split(": ")[1] for text in said[1:]] == ["1.50 GiB of 2.00 GiB", "2.00 GiB of 2.00 GiB"]


def test_bytes_that_are_quick_say_nothing_and_slow_ones_a_line_every_few_seconds(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    quick, slow = AmountLine("a/b", False), AmountLine("a/b", False)
    quick(MIB, 2 * MIB)
    quick(2 * MIB, 2 * MIB)
    for done in (1, 2, 3):
        now[0] += 3
        slow(done * MIB, 4 * MIB)
    slow(4 * MIB, 4 * MIB)
    slow.clear()
    assert capfd.readouterr().err.splitlines() == ["a/b: 2 MiB of 4 MiB", "a/b: 4 MiB of 4 MiB"]


def test_on_a_terminal_the_line_of_bytes_is_wiped_for_what_is_said_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = open_terminal(monkeypatch)
    line = AmountLine("a/b", False)
    line(1000 * MIB, 1024 * MIB)
    line.clear()
    line.clear()
    line(1024 * MIB, 1024 * MIB)
    shown, wiped, last = [*terminal.getvalue().split("\r")[1:3], terminal.getvalue().rpartition("\r")[2]]
    assert shown == "a/b  [###################-] 1000 MiB of 1.00 GiB" and wiped == " " * len(shown)
    assert last == "a/b  [####################] 1.00 GiB of 1.00 GiB\n"


def test_a_stderr_that_cannot_be_written_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    with open(os.devnull) as read_only:
        for stream in (None, closed, read_only):
            monkeypatch.setattr(sys, "stderr", stream)
            say.say("nobody hears this")
            assert say.is_terminal() is False
