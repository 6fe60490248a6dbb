"""What a person sees while a run goes on: stage, step, seconds a step, footprint against ceiling."""

from __future__ import annotations

import shutil
import time

from sdcli.app.making import ShowMaking
from sdcli.app.record import KEPT, RunRecord
from sdcli.cli.preview import Previews
from sdcli.cli.say import Voice, is_terminal, say
from sdcli.domain import Request
from sdcli.families.rounds import AGAIN
from sdcli.host.watchdog import Watchdog
from sdcli.messages import (
    Finished,
    Message,
    Notice,
    Preview,
    Progress,
    Ready,
    StageBegan,
    StageEnded,
    StageLoaded,
    StepDone,
)
from sdcli.plan.ceiling import Ceiling
from sdcli.plan.planner import Planned
from sdcli.units import format_pace, format_size

BAR_WIDTH = 20


class ProgressLines:
    """A line a stage, and on a terminal a bar that moves with each step. Quiet says nothing."""

    def __init__(
        self, record: RunRecord, ceiling: Ceiling, *, quiet: bool, verbose: bool, previews: Previews | None = None
    ) -> None:
        self._record, self._ceiling, self._previews = record, ceiling, previews
        self._quiet, self._verbose = quiet, verbose
        self._moving = is_terminal() and not quiet
        self._drawn = 0
        self._tripped: str | None = None
        self._seconds: dict[int, list[float]] = {}
        """A step's, by round."""

    def __call__(self, message: Message, watchdog: Watchdog) -> None:
        """Show one event."""
        if isinstance(message, Preview) and self._previews is not None:
            if self._previews.on_terminal:
                self._redraw("")
            self._previews.show(message)
        if self._quiet:
            return
        match message:
            case Ready(tripped=why) if not self._record.stages:  # not of a worker that only decodes
                self._tripped = why
            case StageBegan(name):
                if self._tripped is not None:
                    self._plan(self._tripped)
                    self._tripped = None
                self._redraw(f"{name:<14} ...")
            case StageLoaded(name, kept=True) if self._verbose:
                self._line(f"{name}: {KEPT}")
            case StepDone(image, step, count, seconds, round=number):
                self._seconds.setdefault(number, []).append(seconds)
                picture = (
                    f"picture {image + 1} of {self._record.task.request.count}  "
                    if self._record.task.request.count > 1
                    else ""
                )
                pace = f"step {step}/{count}  {seconds:.2f} s/step  {self._memory(watchdog)}"
                self._redraw(f"denoise        {picture}{_bar(step, count)} {pace}")
                if self._verbose and not self._moving:
                    say(f"denoise        {picture}{pace}")
            case StageEnded(name, run_s):
                self._stage(name, run_s, watchdog)
            case Notice(what):
                self._line(f"note: {what}")
            case Finished() if not self._record.pictures:  # it was the worker that goes before the one that decodes
                self._redraw(f"{'decode':<14} starting its own worker ...")

    def clear(self) -> None:
        """Leave no half-drawn line behind."""
        self._redraw("")
        if self._previews is not None:
            self._previews.moved()

    def summary(self) -> str:
        """The last line: how long, and how high."""
        limit = self._ceiling.limit_bytes
        under = f" of {format_size(limit)}" if limit is not None else ""
        return f"done in {self._record.total_s:.1f} s, peak {format_size(self._record.peak_bytes)}{under}"

    def _plan(self, tripped: str) -> None:
        planned, task = self._record.planned, self._record.task
        if planned is None:
            return
        request = task.request
        last = f" to {request.seeds[-1]}" if request.count > 1 else ""
        self._line(f"{task.model.ref} on {task.device} in {task.dtype}, {sizes(request)}, seed {request.seed}{last}")
        if self._verbose:
            baseline = format_size(self._record.baseline_bytes)
            self._line(f"{self._record.device}, torch {self._record.torch_version}, baseline {baseline}")
            if tripped:
                self._line(f"torch and diffusers were imported whole, about 100 MiB more than needed: {tripped}")
            for reason in planned.plan.reasons:
                self._line(f"plan: {reason}")
        under = f" of {format_size(self._ceiling.limit_bytes)}" if self._ceiling.limit_bytes is not None else ""
        peak = format_size(planned.peak_bytes)
        self._line(f"fits: predicted peak {peak}{under}, denoiser {planned.plan.residency}, {pace(planned)}")

    def _stage(self, name: str, run_s: float, watchdog: Watchdog) -> None:
        stage = self._record.stages[-1]
        peak = stage.peak_bytes or watchdog.peaks.by_stage.get(name, 0)
        steps = ""
        times = sorted(self._seconds.get(int(name.startswith(AGAIN)), [])) if name.endswith("denoise") else []
        if times:
            steps = f"  {len(times)} steps, {times[len(times) // 2]:.2f} s each"
        self._line(f"{name:<14} {stage.load_s + run_s:6.1f} s{steps}  peak {format_size(peak)}")

    def _memory(self, watchdog: Watchdog) -> str:
        if self._ceiling.limit_bytes is None:
            return format_size(watchdog.footprint_bytes)
        return f"{format_size(watchdog.footprint_bytes)} of {format_size(self._ceiling.limit_bytes)}"

    def _line(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        say(text)

    def _redraw(self, text: str) -> None:
        """On a terminal, the moving line; elsewhere nothing."""
        if not self._moving:
            return
        width = max(20, shutil.get_terminal_size().columns - 1)
        shown = text[:width]
        say("\r" + shown.ljust(min(self._drawn, width)) + ("\r" if not text else ""), end="")
        self._drawn = len(shown)


class Moving:
    """A line on a terminal that says what is done now; elsewhere nothing."""

    def __init__(self, quiet: bool) -> None:
        self._moving, self._drawn = is_terminal() and not quiet, 0

    def __call__(self, what: str) -> None:
        """Say it in place of what was said before."""
        if self._moving:
            shown = f"{what} ..."[: max(20, shutil.get_terminal_size().columns - 1)]
            say(f"\r{shown:<{self._drawn}}", end="")
            self._drawn = len(shown)

    def clear(self) -> None:
        """Leave no half-drawn line behind."""
        if self._drawn:
            say("\r" + " " * self._drawn + "\r", end="")
            self._drawn = 0


class AmountLine:
    """Progress of bytes that take a while: a bar on a terminal, else a line every few seconds."""

    _waits = True
    """Whether the first line comes after these seconds, so that what is quick says nothing."""

    def __init__(self, what: str, quiet: bool) -> None:
        self._what, self._quiet, self._moving = what, quiet, is_terminal()
        self._said_at = time.monotonic() if self._waits and not self._moving else 0.0
        self._said, self._drawn = not self._waits, 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show how far it is."""
        done = done_bytes == total_bytes
        if self._quiet or (done and not (self._moving or self._said)):
            return
        if time.monotonic() - self._said_at < (0.1 if self._moving else 5.0) and not done:
            return
        self._said_at, self._said = time.monotonic(), not done
        amount = f"{format_size(done_bytes)} of {format_size(total_bytes)}"
        if self._moving:
            line = f"{self._what}  {_bar(done_bytes, total_bytes)} {amount}"
            say(f"\r{line:<{self._drawn}}", end="\n" if done else "")
            self._drawn = 0 if done else len(line)
        else:
            say(f"{self._what}: {amount}")

    def clear(self) -> None:
        """Leave no half-drawn line behind."""
        if self._drawn:
            say("\r" + " " * self._drawn + "\r", end="")
            self._drawn = 0


class MakingLine(AmountLine):
    """Progress of making a synthetic model, from its beginning."""

    _waits = False

    def __init__(self, name: str, quiet: bool) -> None:
        super().__init__(f"making {name}, once", quiet)

    def show(self, message: Progress) -> None:
        """Show how far it is."""
        self(message.done, message.total)


def sizes(request: Request) -> str:
    """Width and height of each round."""
    return ", then ".join(f"{one.width}x{one.height}" for one in request.rounds)


def pace(planned: Planned) -> str:
    """About how long a step takes."""
    last = f"{format_pace(planned.step_s)} a step"
    return last if planned.first_step_s is None else f"{format_pace(planned.first_step_s)} a step, then {last}"


def making_lines(voice: Voice) -> ShowMaking:
    """Shows the making of a model by its name."""
    return lambda name: MakingLine(name, voice.quiet).show


def _bar(done: int, total: int) -> str:
    """For terminals only."""
    return f"[{'#' * (BAR_WIDTH * done // total):-<{BAR_WIDTH}}]"
