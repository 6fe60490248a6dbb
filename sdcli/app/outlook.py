"""What fits: every model that is on this disk or that sdcli knows, at its usual sizes, under a ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from sdcli import settings
from sdcli.app.asked import Asked
from sdcli.app.counting import Counting
from sdcli.app.counts import Uncounted
from sdcli.app.forecast import forecast_of
from sdcli.app.means import Prospect
from sdcli.app.on_disk import models_on_disk
from sdcli.app.picture import Seconds
from sdcli.app.record import Task
from sdcli.app.tasks import request_of, task_of
from sdcli.domain import Model, Residency
from sdcli.errors import SdcliError
from sdcli.families.registry import family_of
from sdcli.models.reference import DEMO, resolve_model
from sdcli.models.synthetic import SYNTHETIC
from sdcli.settings import Profile

Show = Callable[[str], None]
"""Told of what is looked at now."""

SMALL, LARGE = 512, 768
"""Sides that people draw at besides a model's own."""


@dataclass(frozen=True, slots=True)
class Row:
    """A model at a size. `least_limit_bytes` is the least ceiling that it fits under; without a plan it does not fit
    under this one, and with `why` nothing is known."""

    ref: str
    family: str = ""
    hub: str | None = None
    """What `sdcli models pull` fetches it by, of a model that a synthetic one stands for."""
    download_bytes: int = 0
    width: int = 0
    height: int = 0
    steps: int = 0
    fits: bool = False
    peak_bytes: int | None = None
    residency: Residency | None = None
    least_limit_bytes: int | None = None
    seconds: Seconds | None = None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """The rows for a ceiling: of this machine, or of one that is posed as."""

    posed: Profile | None
    limit_bytes: int | None
    limit_from: str
    dtype: str
    rows: tuple[Row, ...]


def outlook(asked: Asked, posed: Profile | None, counting: Counting, show: Show) -> Outlook:
    """Look at all models. What a single one fails in stands in its row."""
    rows: list[Row] = []
    decided: Task | None = None
    for ref, hub in _candidates():
        show(ref)
        try:
            model = resolve_model(ref, counting.outline, outline=True)
            for width, height in usual_sides(family_of(model).geometry(model).native_size):
                show(f"{ref} at {width}x{height}")
                sized = replace(asked, width=width, height=height)
                request = request_of(sized, model, None, _silent)
                decided = task_of(sized, model, request, _silent, debug=counting.debug, posed=posed)
                rows.append(_row(Prospect(decided, posed), hub, counting))
        except SdcliError as error:
            rows.append(Row(ref, why=str(error)))
    if decided is None:
        raise SdcliError(f"not even the built-in model can be opened: {rows[0].why}")
    ceiling = decided.ceiling
    return Outlook(posed, ceiling.limit_bytes, ceiling.reason, decided.dtype, tuple(rows))


def _row(prospect: Prospect, hub: str | None, counting: Counting) -> Row:
    model, request = prospect.task.model, prospect.task.request
    while True:
        try:
            found = forecast_of(prospect, offers=False)
            break
        except Uncounted as lack:
            counting.count(prospect, lack)
    planned = found.planned
    return Row(
        ref=model.ref,
        family=family_of(model).label(model),
        hub=hub,
        download_bytes=download_bytes(model),
        width=request.width,
        height=request.height,
        steps=request.steps,
        fits=planned is not None,
        peak_bytes=planned.peak_bytes if planned else None,
        residency=planned.plan.residency if planned else None,
        least_limit_bytes=found.smallest_limit_bytes,
        seconds=found.seconds,
    )


def usual_sides(native: tuple[int, int]) -> list[tuple[int, int]]:
    """The model's own size, and of those from 512x512 on another that people draw at."""
    side = max(native)
    other = LARGE if side == SMALL else SMALL
    return [native] if side < SMALL else sorted([native, (other, other)])


def download_bytes(model: Model) -> int:
    """What its weights take."""
    return sum(file.size_bytes for part in model.parts.values() for file in part.files)


def _candidates() -> Iterator[tuple[str, str | None]]:
    """The built-in model, those on this disk, and those that are known and not there, with their names on the Hub."""
    on_disk = [entry.ref for entry in models_on_disk() if entry.family is not None]
    yield DEMO, None
    yield from ((ref, None) for ref in on_disk if ref != DEMO and not ref.startswith(SYNTHETIC))
    for name in settings.config_names("models"):
        hub = settings.read_config("models", name)["hub"]
        if hub not in on_disk:
            yield SYNTHETIC + name, hub


def _silent(_: object) -> None:
    """What is said of a single task has no place in a table."""
