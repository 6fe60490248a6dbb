"""One run, from a task to a record: start a worker, plan, watch, relay, and see that every picture is kept."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from sdcli import interrupts, machine
from sdcli.app.attempt import relay, watched_worker
from sdcli.app.record import RunRecord, Task
from sdcli.domain import Part, Plan
from sdcli.errors import NotFinite, NotFiniteInHalf, WillNotFit
from sdcli.host.watchdog import Watchdog
from sdcli.host.worker import Worker
from sdcli.messages import Finished, Job, Message, Notice, PictureDone, Progress, Ready, Start, Synthesize
from sdcli.models.disks import model_in_memory
from sdcli.models.stamps import stamps_of
from sdcli.plan.baselines import build_note, hopeless_bytes, remember_baseline, remembered_baseline, typical_bytes
from sdcli.plan.ceiling import kernel_share_bytes
from sdcli.plan.meter import TreeMeter
from sdcli.plan.planner import MARGIN_BYTES, VAE_TILE, Means, Planned, make_plan
from sdcli.plan.remainder import UNMEASURED_SHARE, WITH_AVX2, WITH_AVX512, WITH_AVX512_IN_FP32, Overhead
from sdcli.plan.seconds import learned
from sdcli.plan.speeds import remember_speed, remembered_speed, typical_speed
from sdcli.units import MIB
from sdcli.weights.copies import is_made, place_of_copy, unfinished

VARYING_BYTES = 4 * MIB
"""By so much the same baseline differs from run to run."""

CUDA_KERNELS_BYTES = 176 * MIB
"""What the driver loads and libraries reserve when their kernels first run (benchmarks/RESULTS.md)."""

Show = Callable[[Message, Watchdog], None]
"""Told of every event, with the watchdog that knows the footprint."""

Save = Callable[[PictureDone, RunRecord], str | None]
"""Keeps one picture; returns where, or None for standard output."""


def run_task(
    task: Task, record: RunRecord, save: Save | None, show: Show, resume: dict[int, bytes] | None = None
) -> None:
    """Do the task, filling in `record`. Raises SdcliError for whatever ends it early; no worker is left.

    Whatever that is, pictures that are denoised by then are decoded and saved first; without `save` nobody wants
    them. `resume` has checkpoints of pictures, by their numbers.
    """
    started = time.monotonic()
    run = _Run(task, record, save, show)
    record.checkpoints.update(resume or {})
    try:
        run.refuse_what_is_known_not_to_fit()
        try:
            run.draw()
        except BaseException as error:
            run.save_what_is_finished(error)
            raise
        if run.trouble is not None:
            raise run.trouble
        _learn(record)
    finally:
        record.total_s = time.monotonic() - started


class _Run:
    """The attempts that a task takes, each a job for a worker of its own: mostly one.

    `trouble` is what went wrong first with keeping a picture; the others are kept all the same.
    """

    def __init__(self, task: Task, record: RunRecord, save: Save | None, show: Show) -> None:
        self.trouble: Exception | None = None
        self._task, self._record, self._save, self._show = task, record, save, show
        self._known_bytes = remembered_baseline(task.device)
        self._watchdog: Watchdog | None = None

    def refuse_what_is_known_not_to_fit(self) -> None:
        """Raise WillNotFit before a worker starts, if that can be known."""
        limit, device = self._task.ceiling.limit_bytes, self._task.device
        if self._known_bytes is not None or (limit is not None and limit <= hopeless_bytes(device)):
            self._plan(self._task, self._known_bytes or typical_bytes(device))

    def draw(self) -> None:
        """All pictures. What half precision cannot do goes on in fp32 from the last good step."""
        task: Task = self._task
        part: Part | None = None
        while True:
            try:
                self._attempt(task, part)
            except NotFiniteInHalf as error:
                if task.dtype == "fp32":
                    raise
                self._tell(f"{error}: done again in fp32")
                task, part = replace(self._task, dtype="fp32"), "latents" if self._record.undone else "pictures"
                continue
            if part == "pictures" or not self._record.finished:
                return
            task, part = self._task, "pictures"

    def save_what_is_finished(self, trouble: BaseException) -> None:
        """Decode and save what is denoised, in the least memory; what prevents that is told, and no more."""
        if self.trouble is not None:
            self._tell(str(self.trouble))
        if isinstance(trouble, NotFinite) and not self._record.undone:
            return  # those are left that no type decodes
        finished, planned = len(self._record.finished), self._record.planned
        if not finished or planned is None or self._save is None:
            return
        what = str(trouble) or type(trouble).__name__
        self._tell(f"{what}; {_pictures(finished)} denoised by then: decoding and saving first")
        self._record.planned = replace(planned, plan=replace(planned.plan, vae_tile=VAE_TILE, fresh_decode=True))
        try:
            try:
                self._attempt(self._task, "pictures")
            except NotFiniteInHalf:
                self._attempt(replace(self._task, dtype="fp32"), "pictures")
        except Exception as error:  # the trouble that led here is what is raised
            self._tell(f"{_pictures(len(self._record.finished))} not saved: {error}")

    def _attempt(self, task: Task, part: Part | None) -> None:
        """Have a worker do one job; without a part all of it, the pictures by another worker if the plan says so."""
        place = _place(task)
        try:
            with watched_worker(task, self._record) as (worker, self._watchdog):
                for message in relay(worker, self._watchdog, self._record, task.dtype):
                    if isinstance(message, Ready):
                        worker.send(self._job(task, part, place, message))
                    elif isinstance(message, PictureDone):
                        self._keep(message)
                    self._show(message, self._watchdog)
                    if isinstance(message, Finished):
                        return
        finally:
            if self._record.worker_pid and place is not None:
                shutil.rmtree(unfinished(place, self._record.worker_pid), ignore_errors=True)  # if it was stopped

    def _job(self, task: Task, part: Part | None, place: Path | None, ready: Ready) -> Job:
        """What the worker is to do, planned now that it has said what it weighs."""
        record = self._record
        if ready.flops is not None:
            remember_speed(task.device, task.dtype, replace(means_of(task).speed, flops=ready.flops))
        if record.planned is None:
            record.device, record.torch_version = ready.device, ready.torch_version
            record.baseline_bytes = _baseline(task, ready)
            remember_baseline(task.device, record.baseline_bytes)
            record.planned = self._plan(task, self._baseline_bytes())
            part = "latents" if record.planned.plan.fresh_decode else "whole"
        elif task.dtype != self._task.dtype:
            try:
                record.planned = self._plan(task, self._baseline_bytes())
            except WillNotFit as error:
                if part != "pictures":
                    raise NotFinite(f"NaN or infinity came out in {self._task.dtype}, and fp32 {error}") from error
                record.planned = replace(record.planned, plan=replace(record.planned.plan, vae_tile=VAE_TILE))
        blobs: Mapping[int, bytes] = record.finished
        if part != "pictures":
            blobs = ChainMap(record.finished, record.checkpoints)
        return _job(task, record.planned.plan, blobs, place, part or "whole")

    def _baseline_bytes(self) -> int:
        """What a plan told beforehand went by, so that the plan stays the same, unless more was measured now."""
        measured = self._record.baseline_bytes
        told = self._known_bytes or min(typical_bytes(self._task.device), measured)
        return told if measured <= told + VARYING_BYTES else measured

    def _plan(self, task: Task, baseline_bytes: int) -> Planned:
        return make_plan(task.model, task.request, task.dtype, task.ceiling.limit_bytes, baseline_bytes, means_of(task))

    def _keep(self, picture: PictureDone) -> None:
        """Save a picture. One that cannot be saved, or not where it should be, is no reason to lose the next."""
        with interrupts.held():
            try:
                path = self._save(picture, self._record) if self._save is not None else None
                self._record.pictures.append((path, replace(picture, payload=b"")))
            except Exception as error:
                if self.trouble is not None:
                    self._tell(str(error))
                self.trouble = self.trouble or error
            finally:
                self._record.finished.pop(picture.image, None)  # no second try, not of one that was cut off either

    def _tell(self, what: str) -> None:
        self._record.events.append((None, what))
        if self._watchdog is not None:
            self._show(Notice(what), self._watchdog)


def _pictures(count: int) -> str:
    return "1 picture was" if count == 1 else f"{count} pictures were"


def means_of(task: Task) -> Means:
    """What a plan for this task may count on."""
    place, batches = _place(task), task.device != "cpu" or machine.cpu_batches()
    return Means(
        speed=remembered_speed(task.device, task.dtype) or typical_speed(task.device, task.dtype),
        prepared=place is not None,
        making=place is not None and not is_made(place),
        fused=machine.attends_fused(task.device, task.dtype),
        heap=task.device == "cpu",
        batches=batches,
        overhead=_overhead(task),
        note=build_note(task.device),
        in_memory=model_in_memory(task.model),
        margin_bytes=MARGIN_BYTES + (0 if task.device == "cuda" else kernel_share_bytes(task.ceiling.limit_bytes)),
    )


def _overhead(task: Task) -> Overhead:
    """Of this kind of processor, wide where it was never measured. A GPU's is that of Intel's matrix unit."""
    if task.device != "cpu":
        return WITH_AVX512
    measured = machine.cpu_is_measured(task.dtype)
    if not machine.cpu_batches():
        nearest = WITH_AVX2
    else:
        nearest = WITH_AVX512_IN_FP32 if measured and task.dtype == "fp32" else WITH_AVX512
    return nearest if measured else nearest.widened(UNMEASURED_SHARE)


def _place(task: Task) -> Path | None:
    """Of the denoiser's prepared copy."""
    return place_of_copy(task.model, task.device, task.dtype, task.model.latent_shape(task.request))


def make_synthetic(name: str, folder: Path, show: Callable[[Progress], None], debug: bool = False) -> None:
    """Have a worker make the synthetic model `name` in `folder`."""
    with Worker(debug) as worker:
        worker.send(Start("cpu", None))
        worker.send(Synthesize(name, str(folder)))
        for message in worker.messages():
            if isinstance(message, Progress):
                show(message)
            elif isinstance(message, Finished):
                return
        raise worker.end()


def _learn(record: RunRecord) -> None:
    """Correct the speeds that plans go by. The first step compiles kernels, and tells of them."""
    task, seconds = record.task, [step.seconds for step in record.steps[1:]]
    if record.planned is not None and seconds and set(record.denoised_in.values()) == {task.dtype}:
        took, speed = statistics.median(seconds), means_of(task).speed
        now = learned(speed, task.model, task.request, record.planned.plan, task.dtype, took)
        if now != speed:
            remember_speed(task.device, task.dtype, now)


def _baseline(task: Task, ready: Ready) -> int:
    """What is in use before anything is loaded, of the memory that the ceiling covers."""
    return (
        ready.device_peak_bytes + CUDA_KERNELS_BYTES
        if task.device == "cuda"
        else TreeMeter(os.getpid()).footprint_bytes()
    )


def _job(task: Task, plan: Plan, resume: Mapping[int, bytes], place: Path | None, part: Part) -> Job:
    blobs = [resume[image] for image in sorted(resume)]
    payload = (task.pixels if part != "pictures" else b"") + b"".join(blobs)
    copy, folder = None if place is None else str(place), str(task.model.folder)
    stamps = dict(stamps_of(task.model))
    return Job(task.request, plan, folder, task.dtype, tuple(map(len, blobs)), payload, copy, part, stamps)
