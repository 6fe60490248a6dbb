"""What is to be done, and how it went: a task and its record."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sdcli import interrupts
from sdcli.app.asked import OnLimit
from sdcli.app.folder import Kept, RunFolder
from sdcli.domain import DeviceName, DtypeName, Model, Request
from sdcli.host.watchdog import Peaks
from sdcli.messages import LatentsDone, Message, Notice, PictureDone, StageBegan, StageEnded, StageLoaded, StepDone
from sdcli.plan.ceiling import Ceiling
from sdcli.plan.planner import Planned
from sdcli.plan.series import Series

if TYPE_CHECKING:
    from sdcli.images.masks import Canvas
    from sdcli.images.read import Edit
    from sdcli.images.write import Destination

KEPT = "from the cache, where another run kept it"
"""What is said of a stage that was not computed."""


@dataclass(frozen=True, slots=True)
class Task:
    """Everything a run needs: what to draw, with what, on what, under which ceiling.

    `pixels` is the init image of img2img, RGB, at the request's size, and `references` are pictures to go by.
    """

    model: Model
    request: Request
    device: DeviceName
    dtype: DtypeName
    ceiling: Ceiling
    pixels: bytes = b""
    debug: bool = False
    written: str | None = None
    """The prompt as it was written, with what is no words in it."""
    threads: int | None = None
    """Of the CPU that compute; None is what the library takes."""
    keeps: bool = True
    """Whether encodings of prompts are kept for other runs, and taken from them."""
    prepares: bool = True
    """Whether a prepared copy of the denoiser's weights is made where it helps, or used."""
    references: bytes = b""
    mask: bytes = b""
    """Which of the pixels change, one byte each, if not all do."""
    canvas: Canvas | None = None
    """What is drawn is laid over this one."""
    preview_every: int = 0
    """Steps from one preview to the next; 0 is none."""
    edit: Edit | None = None
    """How the init image came to its size, and what of it changes."""
    on_limit: OnLimit = "degrade"

    @property
    def pictures_size(self) -> tuple[int, int]:
        """Width and height of finished pictures."""
        last = self.request.rounds[-1]
        return self.request.canvas or (last.width, last.height)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How pictures are wanted: where, by names that were asked for in `working_folder`, and whether with words in them
    that say how they were made."""

    destination: Destination
    keep_text: bool
    working_folder: str
    receipt: bool = False
    """Whether those words say what the picture took as well."""


@dataclass(slots=True)
class StageRecord:
    """One stage as it went."""

    name: str
    load_s: float = 0.0
    run_s: float = 0.0
    predicted_peak_bytes: int = 0
    peak_bytes: int = 0


@dataclass(slots=True)
class RunRecord:
    """One run as it went. It is filled in as events come, so that a run that fails leaves what it has."""

    task: Task
    planned: Planned | None = None
    baseline_bytes: int = 0
    peak_bytes: int = 0
    host_peak_bytes: int = 0
    peak_rss_bytes: int = 0
    """The most that was resident of the process tree, clean pages of files as well."""
    cgroup_peak_bytes: int | None = None
    """Of the control group that the run was counted in; None where it had none to itself."""
    samples: int = 0
    torch_version: str = ""
    device: str = ""
    threads: int | None = None
    """That computed, as the worker counts them."""
    stages: list[StageRecord] = field(default_factory=list)
    steps: list[StepDone] = field(default_factory=list)
    folder: RunFolder = field(default_factory=RunFolder)
    denoised_in: dict[int, DtypeName] = field(default_factory=dict)
    """The type that each picture was denoised in."""
    pictures: list[tuple[str | None, PictureDone]] = field(default_factory=list)
    events: list[tuple[int | None, str]] = field(default_factory=list)
    total_s: float = 0.0
    began: float = 0.0
    """By time.monotonic()."""
    series: Series = field(default_factory=Series)
    """The footprint over time, of all attempts and all workers."""
    traceback: str = ""
    worker_pid: int = 0
    wanted: Wanted | None = None
    """None where nobody wants the pictures."""
    drawn_on: str | None = None
    """What a run that this one goes on with was drawn on, in the worker's words; None for any."""
    goes_on_in: DtypeName | None = None
    """The type that its steps go on in, where it had been changed."""
    degraded: int = 0
    """How often the ceiling was crossed and a smaller plan went on."""

    @property
    def checkpoints(self) -> Kept:
        """The last checkpoint of each picture that is begun and not denoised."""
        return self.folder.checkpoints

    @property
    def finished(self) -> Kept:
        """That of each picture that is denoised and not drawn yet."""
        return self.folder.latents

    @property
    def undone(self) -> bool:
        """Whether a picture is still to be denoised."""
        return len(self.denoised_in) < self.task.request.count

    @property
    def unsaved(self) -> list[int]:
        """Pictures that are not where they should be."""
        return [image for image in range(self.task.request.count) if image not in self.folder.saved]

    def take(self, message: Message, dtype: DtypeName) -> None:
        """Note what a worker says that computes in this type."""
        match message:
            case StageBegan(name):
                predicted = {need.name: need.peak_bytes for need in self.planned.needs} if self.planned else {}
                self.stages.append(StageRecord(name, predicted_peak_bytes=predicted.get(name, 0)))
            case StageLoaded(name, load_s, kept):
                self.stages[-1].load_s = load_s
                if kept:
                    self.events.append((None, f"{name}: {KEPT}"))
            case StepDone():
                self.steps.append(replace(message, payload=b""))  # of a thousand pictures they would be many
                if message.step == message.count:
                    self._denoised(message.image, message.payload, dtype)
                else:
                    self.checkpoints[message.image] = message.payload
            case LatentsDone(image, payload):
                self._denoised(image, payload, dtype)
            case StageEnded(_, run_s, device_peak_bytes):
                self.stages[-1].run_s = run_s
                self.stages[-1].peak_bytes = device_peak_bytes
            case Notice(what, step):
                self.events.append((step, what))

    def take_peaks(self, peaks: Peaks, stages_before: int) -> None:
        """Note the footprint's peaks of the stages since, or on CUDA the device's beside the host's."""
        self.samples += peaks.samples
        self.series.extend(peaks.series)
        if self.task.device != "cuda":
            for stage in self.stages[stages_before:]:
                stage.peak_bytes = max(stage.peak_bytes, peaks.by_stage.get(stage.name, 0))
        self.take_peak(peaks)

    def take_peak(self, peaks: Peaks) -> None:
        """Note the footprint's peak so far, or on CUDA the device's beside the host's; and the resident set's."""
        self.peak_rss_bytes = max(self.peak_rss_bytes, peaks.rss_bytes)
        self.host_peak_bytes = max(self.host_peak_bytes, peaks.overall_bytes)
        on_device = max((stage.peak_bytes for stage in self.stages), default=0)
        self.peak_bytes = on_device if self.task.device == "cuda" else self.host_peak_bytes

    def _denoised(self, image: int, payload: bytes, dtype: DtypeName) -> None:
        """A picture is only to be decoded."""
        with interrupts.deferred():
            self.finished[image] = payload
            self.denoised_in.setdefault(image, dtype)  # one that is handed over again was denoised before
            self.checkpoints.drop(image)
