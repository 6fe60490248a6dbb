"""What is to be done, and how it went: a task and its record."""

from __future__ import annotations

from dataclasses import dataclass, field

from sdcli.domain import DeviceName, DtypeName, Request
from sdcli.messages import PictureDone, StepDone
from sdcli.models.folder import Model
from sdcli.plan.ceiling import Ceiling
from sdcli.plan.planner import Planned
from sdcli.spool import Spool


@dataclass(frozen=True, slots=True)
class Task:
    """Everything a run needs: what to draw, with what, on what, under which ceiling.

    `pixels` is the init image of img2img, RGB, at the request's size.
    """

    model: Model
    request: Request
    device: DeviceName
    dtype: DtypeName
    ceiling: Ceiling
    pixels: bytes = b""
    debug: bool = False


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
    samples: int = 0
    torch_version: str = ""
    device: str = ""
    stages: list[StageRecord] = field(default_factory=list)
    steps: list[StepDone] = field(default_factory=list)
    checkpoints: Spool = field(default_factory=Spool)
    """The last checkpoint of each picture that is begun and not finished."""
    finished: Spool = field(default_factory=Spool)
    """That of each picture that is denoised and not drawn yet."""
    denoised_in: dict[int, DtypeName] = field(default_factory=dict)
    """The type that each picture was denoised in."""
    pictures: list[tuple[str | None, PictureDone]] = field(default_factory=list)
    events: list[tuple[int | None, str]] = field(default_factory=list)
    total_s: float = 0.0
    traceback: str = ""
    worker_pid: int = 0

    @property
    def undone(self) -> bool:
        """Whether a picture is still to be denoised."""
        return len(self.denoised_in) < self.task.request.count
