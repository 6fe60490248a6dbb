"""One run, from a task to a record: attempt after attempt, until every picture is kept or nothing more can be done."""

from __future__ import annotations

import shutil
import time
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sdcli.app.attempt import Hear, attempt, job_of
from sdcli.app.counts import Uncounted
from sdcli.app.growth import Growth
from sdcli.app.keeping import Keeper, Save
from sdcli.app.known import known_baseline, measured_baseline, settled_baseline, typical_baseline
from sdcli.app.learning import learn_flops, learn_from, learn_of_crossing
from sdcli.app.means import Prospect, is_hopeless
from sdcli.app.record import RunRecord, Task
from sdcli.app.run_file import run_file_of
from sdcli.domain import DtypeName, Part, Plan
from sdcli.errors import CeilingCrossed, NotFinite, NotFiniteInHalf, SdcliError, WillNotFit, echo
from sdcli.host.control_group import ControlGroup, drop_cached, group_of_run
from sdcli.host.watchdog import Watchdog
from sdcli.messages import Count, Counted, Job, Message, Notice, PictureDone, Ready, StepDone
from sdcli.units import format_size
from sdcli.weights.copies import unfinished

DEGRADED_MOST = 3
"""So often a run goes on after it crossed its ceiling."""

NO_WORKER = (SdcliError, OSError, RuntimeError, MemoryError)
"""What a worker ends in, and what a system without room for another process or thread raises."""


def run_task(task: Task, record: RunRecord, save: Save | None, show: Hear) -> None:
    """Do the task, filling in `record`, from its checkpoints on if it has any.

    Raises SdcliError for whatever ends it early; no worker is left. Whatever that is, pictures that are denoised by
    then are decoded and saved first; without `save` nobody wants them.
    """
    record.began = time.monotonic()
    with group_of_run(task.ceiling.kernel_limit_bytes) as group:

        def counted(picture: PictureDone, record: RunRecord) -> str | None:
            record.cgroup_peak_bytes = group.peak_bytes  # of its receipt
            return None if save is None else save(picture, record)

        try:
            _do(_Run(task, record, save and counted, show, group.joined), task, record, save)
        finally:
            record.cgroup_peak_bytes = group.peak_bytes


def _do(run: _Run, task: Task, record: RunRecord, save: Save | None) -> None:
    over = not record.unsaved
    try:
        if over:
            return
        run.refuse_what_is_known_not_to_fit()
        try:
            run.draw()
        except BaseException as error:
            run.save_what_is_finished(error)
            over = isinstance(error, NotFinite) and not (record.undone and record.finished)  # it would be so again
            if not record.unsaved:
                over = True
                if run.passes_over(error):
                    return
            raise
        over = True
        if run.keeper.trouble is not None:
            raise run.keeper.trouble
        record.total_s = time.monotonic() - record.began
        learn_from(record, run.prospect(task))
    finally:
        record.folder.close(over or save is None)
        record.total_s = time.monotonic() - record.began


class _Run:
    """The attempts that a task takes, each a job for a worker of its own: mostly one."""

    def __init__(
        self, task: Task, record: RunRecord, save: Save | None, show: Hear, group: ControlGroup | None
    ) -> None:
        self.keeper = Keeper(record, save, self._tell)
        self._task, self._record, self._show = task, record, show
        self._known_bytes = known_baseline(task)
        self._prospects: dict[DtypeName, Prospect] = {}
        self._watchdog: Watchdog | None = None
        self._group = group
        self._done_before = 0
        self._growth = Growth()

    def refuse_what_is_known_not_to_fit(self) -> None:
        """Raise WillNotFit before a worker starts, if that can be known."""
        if self._known_bytes is not None or is_hopeless(self._task):
            with suppress(Uncounted):
                self.prospect(self._task).plan(self._known_bytes or typical_baseline(self._task))

    def draw(self) -> None:
        """All pictures. What half precision cannot do goes on in fp32 from the last good step."""
        task, part = self._begin()
        while True:
            try:
                self._attempt(task, part)
            except NotFiniteInHalf as error:
                if task.dtype == "fp32":
                    raise
                self._tell(f"{error}: done again in fp32")
                if self._record.undone:
                    self._record.folder.goes_on_in("fp32", self._record.denoised_in)
                task, part = replace(self._task, dtype="fp32"), "latents" if self._record.undone else "pictures"
                continue
            except CeilingCrossed as error:
                if task.on_limit == "degrade" and not self._record.unsaved:
                    raise
                part = self._go_on_smaller(task, error)
                continue
            if part == "pictures" or not self._record.finished:
                return
            task, part = self._task, "pictures"

    def _begin(self) -> tuple[Task, Part | None]:
        """What is done first: all, or what a run left undone that this one goes on with."""
        if not self._record.undone:
            return self._task, "pictures"
        if self._record.goes_on_in is not None and self._record.goes_on_in != self._task.dtype:
            return replace(self._task, dtype=self._record.goes_on_in), "latents"
        return self._task, None

    def _undone_part(self, plan: Plan) -> Part:
        """What is left, for one worker; where another one decodes, up to the latents."""
        if not self._record.undone:
            return "pictures"
        return "latents" if plan.fresh_decode else "whole"

    def _go_on_smaller(self, task: Task, crossed: CeilingCrossed) -> Part:
        """What is left to do, by the next smaller plan; where there is none, in a new worker if this one came further.

        Raises the crossing where that is no use.
        """
        record, planned = self._record, self._record.planned
        if planned is None or not self._may_shrink:
            raise crossed
        prospect, stage = self.prospect(task), crossed.stage or record.stages[-1].name
        if record.undone:
            smaller = prospect.smaller(planned, stage, crossed.footprint_bytes)
        else:
            smaller = replace(planned, plan=prospect.frugal_decode(planned.plan, fresh=True))
        learn_of_crossing(record, prospect, stage, crossed.footprint_bytes)
        if smaller is None or smaller.plan == planned.plan:
            if self._done == self._done_before:
                raise crossed
            smaller, how = planned, "in a new worker"
        else:
            how = "with a smaller plan"
        record.planned = smaller
        record.degraded += 1
        self._tell(f"{crossed.where}: going on from there {how}", crossed.step)
        return self._undone_part(smaller.plan) if task.dtype == self._task.dtype or not record.undone else "latents"

    @property
    def _may_shrink(self) -> bool:
        """Whether another attempt may follow one that takes too much."""
        task = self._task
        return (
            task.on_limit != "kill" and task.ceiling.limit_bytes is not None and self._record.degraded < DEGRADED_MOST
        )

    def _leave_before_it_crosses(self, step: StepDone, watchdog: Watchdog) -> None:
        """Raise CeilingCrossed after a step whose like the ceiling has no room for, as it seems: its checkpoint is
        there, and the next attempt goes on from it."""
        planned, limit_bytes, peak_bytes = self._record.planned, self._task.ceiling.limit_bytes, watchdog.lap()
        last = step.step == step.count and step.image + 1 >= self._task.request.count
        if planned is None or limit_bytes is None or not peak_bytes or self._task.device == "cuda":
            return
        predicted_bytes = next((need.peak_bytes for need in planned.needs if need.name == watchdog.stage), limit_bytes)
        next_bytes = self._growth.forecast(peak_bytes, predicted_bytes)
        if next_bytes is not None and next_bytes > limit_bytes and self._may_shrink and not last:
            where = f"the ceiling of {format_size(limit_bytes)} would be crossed in the stage {watchdog.stage}"
            where += f" after step {step.step}"
            message = f"{where}: footprint {format_size(peak_bytes)}, and more at each step"
            raise CeilingCrossed(message, where, watchdog.stage, step.step, peak_bytes)

    @property
    def _done(self) -> int:
        """How far it came: steps and pictures."""
        return len(self._record.steps) + len(self._record.pictures)

    def save_what_is_finished(self, trouble: BaseException) -> None:
        """Decode and save what is denoised, in the least memory; what prevents that is told, and no more."""
        if self.keeper.trouble is not None:
            self._tell(str(self.keeper.trouble))
        if isinstance(trouble, NotFinite) and not self._record.undone:
            return  # those are left that no type decodes
        finished, planned = len(self._record.finished), self._record.planned
        if not finished or planned is None or not self.keeper.wanted:
            return
        what = str(trouble) or type(trouble).__name__
        self._tell(f"{what}; {_pictures(finished)} denoised by then: decoding and saving first")
        self._record.planned = replace(planned, plan=self.prospect(self._task).frugal_decode(planned.plan, fresh=True))
        try:
            try:
                self._attempt(self._task, "pictures")
            except NotFiniteInHalf:
                self._attempt(replace(self._task, dtype="fp32"), "pictures")
        except NO_WORKER as error:  # the trouble that led here is what is raised
            self._tell(f"{_pictures(len(self._record.finished))} not saved: {error}")

    def passes_over(self, trouble: BaseException) -> bool:
        """Whether a run that has saved all its pictures is whole in spite of this; it is told then."""
        asked_for = isinstance(trouble, CeilingCrossed) and self._task.on_limit == "kill"
        if isinstance(trouble, SdcliError) and not isinstance(trouble, NotFinite) and not asked_for:
            self._tell(f"{trouble}; all pictures are saved")
            return True
        return False

    def _attempt(self, task: Task, part: Part | None) -> None:
        """Have a worker do one job; without a part all of it, the pictures by another worker if the plan says so."""
        prospect, self._done_before, self._growth = self.prospect(task), self._done, Growth()
        try:
            attempt(task, self._record, lambda message: self._answer(prospect, part, message), self._hear, self._group)
        finally:
            if self._record.worker_pid and prospect.known_copy is not None:
                half = unfinished(prospect.known_copy, self._record.worker_pid)
                shutil.rmtree(half, ignore_errors=True)  # if it was stopped

    def _answer(self, prospect: Prospect, part: Part | None, message: Ready | Counted) -> Count | Job | None:
        """What the worker is told: what to count, as long as something is unknown, then its job."""
        if isinstance(message, Ready):
            self._take_measures(prospect.task, message)
        elif prospect.book.learn(message.payload):
            return None
        try:
            return self._job(prospect, part)
        except Uncounted as lack:
            return prospect.book.ask(lack)

    def _take_measures(self, task: Task, ready: Ready) -> None:
        """What the worker says of the machine, and weighs before anything is loaded."""
        learn_flops(task, ready.flops)
        if self._record.planned is None:
            self._record.device, self._record.torch_version = ready.device, ready.torch_version
            self._record.threads = ready.threads
            self._record.baseline_bytes = measured_baseline(task, ready)
        if self._record.drawn_on not in (None, ready.device):
            what = f"it was drawn on {echo(self._record.drawn_on)}, this is {echo(ready.device)}"
            raise SdcliError(f"other bits would come of it: {what}; --anyway goes on all the same")

    def _job(self, prospect: Prospect, part: Part | None) -> Job:
        """What the worker is to do, planned now that it has said what it weighs."""
        record, task = self._record, prospect.task
        if record.planned is None:
            record.planned = prospect.plan(self._baseline_bytes())
            record.folder.describe(*run_file_of(record))
            part = part or self._undone_part(record.planned.plan)
            if lack := prospect.lack_of_copy(record.planned.plan):
                self._tell(lack)
        elif task.dtype != self._task.dtype:
            try:
                record.planned = prospect.plan(self._baseline_bytes())
            except WillNotFit as error:
                if part != "pictures":
                    raise NotFinite(f"NaN or infinity came out in {self._task.dtype}, and fp32 {error}") from error
                record.planned = replace(record.planned, plan=prospect.frugal_decode(record.planned.plan, fresh=False))
        blobs: Mapping[int, bytes] = record.finished
        if part != "pictures":
            blobs = ChainMap(record.finished, record.checkpoints)
        if self._group is not None:
            drop_cached(_files_of(prospect))
        return job_of(prospect, record.planned.plan, blobs, part or "whole", tuple(record.folder.saved))

    def _hear(self, message: Message, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        if isinstance(message, PictureDone):
            self.keeper.keep(message)
        self._show(message, watchdog)
        if isinstance(message, StepDone):
            self._leave_before_it_crosses(message, watchdog)

    def _baseline_bytes(self) -> int:
        return settled_baseline(self._task, self._known_bytes, self._record.baseline_bytes)

    def prospect(self, task: Task) -> Prospect:
        """The task with counts, and all that is decided once a run and type: a plan and its job never differ in it."""
        return self._prospects.setdefault(task.dtype, Prospect(task))

    def _tell(self, what: str, step: int | None = None) -> None:
        self._record.events.append((step, what))
        if self._watchdog is not None:
            self._show(Notice(what, step), self._watchdog)


def _files_of(prospect: Prospect) -> Iterator[Path]:
    """Of the model, and of its prepared copy."""
    for part in prospect.task.model.parts.values():
        yield from (file.path for file in part.files)
    if prospect.copy is not None:
        yield from prospect.copy.rglob("*")


def _pictures(count: int) -> str:
    return "1 picture was" if count == 1 else f"{count} pictures were"
