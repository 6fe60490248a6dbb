"""About how long a picture takes from the command to the file, and what bounds its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sdcli.app.means import Prospect
from sdcli.app.reading import Reads, room_for_cache
from sdcli.plan.planner import Planned
from sdcli.plan.seconds import picture_seconds

Bound = Literal["disk", "arithmetic"]


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of a step of the last round, of a whole picture, and what they wait for."""

    step_s: float
    picture_s: float
    bound: Bound


def seconds_of(prospect: Prospect, planned: Planned, reads: Reads | None) -> Seconds:
    """Those of a plan. A disk counts where it is known and its files cannot stay in the system's cache."""
    step_s = planned.step_s if reads is None else reads.step_s
    bound: Bound = "disk" if step_s > planned.step_s else "arithmetic"
    pace, request = prospect.pace(planned.plan), prospect.task.request
    if pace is not None:
        return Seconds(pace.step_s, pace.of(request.count, request.steps_run), bound)
    model_bytes = sum(file.size_bytes for part in prospect.task.model.parts.values() for file in part.files)
    keeps = model_bytes <= room_for_cache(prospect, planned)
    disk = None if reads is None or keeps else reads.bytes_a_second
    if disk is None and prospect.posed is not None and not keeps:
        disk = prospect.posed.machine.disk_bytes
    picture_s = picture_seconds(
        prospect.subject, planned.plan, prospect.speed, step_s, planned.first_step_s, disk, prospect.is_copied
    )
    return Seconds(step_s, picture_s, bound)
