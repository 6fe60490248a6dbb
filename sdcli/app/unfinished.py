"""Runs that ended before all their pictures were saved: what there is of them, and which go in the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdcli.app.folder import BLOB_BYTES
from sdcli.app.own_files import read_own, unsealed
from sdcli.app.run_file import RunFile, read_run_file
from sdcli.app.runs import DAY_S, RUN_FILE, hold, is_in_use, last_holder, last_use, run_folders, size_bytes_of
from sdcli.domain import Request
from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.plan.remembered import change_table, number, read_table
from sdcli.units import GIB

CAP_BYTES = GIB
"""All folders of dead runs together take no more: the oldest go first."""

KEPT_S = 14 * DAY_S
"""A dead run's folder that is older goes."""

SOON_S = 3 * DAY_S
"""So long before that it is said, and a day before at the latest."""

NOTHING_S = 3600.0
"""A folder without a run file and latents goes when it is older: its run was killed as it began."""

CALLS_MOST = 4
"""Of a denoiser for a step, each of which schedulers count: as of Runge-Kutta's fourth order."""

TOLD = "told.json"
"""When it was said of which run that it goes."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One run that is not finished. `picture` is the one that it is at, from 1, `step` the last that is kept of it."""

    id: str
    folder: Path
    file: RunFile
    saved: int
    denoised: int
    picture: int
    step: int | None
    steps: int
    """Of the round that it is at."""
    age_s: float
    size_bytes: int
    in_use: bool

    @property
    def count(self) -> int:
        """Its pictures."""
        return self.file.request.count


def unfinished_runs(tell: Callable[[str], None] = lambda _: None) -> Iterator[Unfinished]:
    """All that can be gone on with, the newest first; also those that go on just now.

    Of one that cannot, such as another version's, it is told why. One that was killed when it had saved all its
    pictures leaves a folder that is deleted here.
    """
    for folder in run_folders():
        with suppress(OSError):
            if not (folder / RUN_FILE).is_file():
                continue
            try:
                run = look_at(folder)
            except SdcliError as error:
                if (folder / RUN_FILE).is_file():  # else it ended meanwhile
                    tell(str(error))
                continue
            if run.saved < run.count:
                yield run
            elif not run.in_use:
                with suppress(SdcliError):
                    remove(folder)


def clean_after(file: RunFile, lock: int) -> None:
    """Delete what a killed run left where its pictures go; the lock on its folder says who it was. Never fails."""
    from sdcli.images.atomic import sweep_of

    pid, place = last_holder(lock), file.wanted.destination.seen_from(file.wanted.working_folder).folder
    if pid is not None and place is not None:
        sweep_of(pid, place)


def look_at(folder: Path) -> Unfinished:
    """What there is of a run. Raises SdcliError for a folder without a run file that can be read."""
    file = read_run_file(folder)
    found = [re.fullmatch(r"(saved|latents|unplaced|checkpoint)-(\d{1,4})", path.name) for path in folder.iterdir()]
    by_kind: dict[str, set[int]] = {"saved": set(), "latents": set(), "unplaced": set(), "checkpoint": set()}
    for match in found:
        if match is not None and int(match[2]) < file.request.count:
            by_kind[match[1]].add(int(match[2]))
    done = by_kind["saved"] | by_kind["latents"] | by_kind["unplaced"]
    left = [image for image in range(file.request.count) if image not in done]
    begun = [image for image in left if image in by_kind["checkpoint"]]
    at = begun[0] if begun else left[0] if left else file.request.count - 1
    told = _step_of(folder / f"checkpoint-{at}", file.request) if begun else None
    step, steps = told or (None, file.request.steps_run)
    return Unfinished(
        id=folder.name,
        folder=folder,
        file=file,
        saved=len(by_kind["saved"]),
        denoised=len(done),
        picture=at + 1,
        step=step,
        steps=steps,
        age_s=max(0.0, time.time() - last_use(folder)),
        size_bytes=size_bytes_of(folder),
        in_use=is_in_use(folder),
    )


def find_run(name: str | None) -> Unfinished:
    """The unfinished run of that id, or of one that begins so; the newest that nobody goes on with if none is given.

    Raises SdcliError where there is none, BadRequest where several begin so.
    """
    if name is None:
        unusable = list[str]()
        run = next((run for run in unfinished_runs(unusable.append) if not run.in_use), None)
        if run is None:
            raise SdcliError(unusable[0] if unusable else "no run is unfinished: there is nothing to go on with")
        return run
    return look_at(find_folder(name))


def find_folder(name: str) -> Path:
    """The folder of the run of that id, or of one that begins so.

    Raises SdcliError for none, BadRequest for several.
    """
    found = [folder for folder in run_folders() if name and folder.name.startswith(name)]
    exact = [folder for folder in found if folder.name == name]
    if not found:
        raise SdcliError(f"no run {echo(name)}: sdcli runs list shows what is unfinished")
    if len(found) > 1 and not exact:
        raise BadRequest(f"{len(found)} runs begin with {echo(name)}: give more of it; sdcli runs list shows them")
    return (exact or found)[0]


def remove(folder: Path) -> int:
    """Delete a run's folder; returns the bytes that it had. Raises SdcliError while it is in use."""
    lock = hold(folder)
    if lock is None:
        raise SdcliError(f"the run {folder.name} goes on in another process: end that first")
    try:
        size_bytes = size_bytes_of(folder)
        with suppress(SdcliError, OSError):
            clean_after(read_run_file(folder), lock)
        (folder / RUN_FILE).unlink(missing_ok=True)  # first: what is left of a folder without it is nobody's
        shutil.rmtree(folder)
    except OSError as error:
        raise SdcliError(f"cannot remove {echo(folder)}: {error.strerror}; check its permissions") from error
    finally:
        os.close(lock)
    return size_bytes


def sweep(tell: Callable[[str], None] = lambda _: None) -> None:
    """Delete folders of dead runs that are old, or beyond the cap. Never fails.

    Of one that could be gone on with that is told in a run before, a day at least.
    """
    total_bytes, now, told = 0, time.time(), read_table(TOLD)
    ages: dict[Path, float] = {}
    for folder in run_folders():
        with suppress(OSError):
            ages[folder] = now - last_use(folder)
    for folder, age_s in sorted(ages.items(), key=lambda one: one[1]):
        with suppress(OSError, SdcliError):
            if is_in_use(folder):
                continue
            size_bytes = size_bytes_of(folder)
            total_bytes += size_bytes
            due = total_bytes > CAP_BYTES or age_s > KEPT_S
            told_at = number(told.get(folder.name), 0, now)
            left = _left_of(folder)
            nothing = age_s > NOTHING_S and _has_nothing(folder)
            if left == 0 or nothing or (left is None and due):
                remove(folder)
            elif left is None:
                continue
            elif due and told_at is not None and now - told_at > DAY_S:
                remove(folder)
            elif (due or age_s > KEPT_S - SOON_S) and told_at is None:
                told[folder.name] = now
                what = f"the unfinished run {folder.name} will soon be deleted"
                tell(f"{what}: sdcli resume {folder.name} goes on with it")
    kept = {name: at for name, at in told.items() if any(folder.name == name for folder in ages)}
    if kept or told:
        change_table(TOLD, lambda _: kept)


def _has_nothing(folder: Path) -> bool:
    return not any(
        path.name == RUN_FILE or path.name.startswith(("latents-", "unplaced-")) for path in folder.iterdir()
    )


def _left_of(folder: Path) -> int | None:
    """How many pictures of a run are not saved; None where that cannot be known."""
    try:
        run = look_at(folder)
    except (SdcliError, OSError):
        return None
    return run.count - run.saved


def _step_of(path: Path, request: Request) -> tuple[int, int] | None:
    """The step of a checkpoint (engine/checkpoint.py) and the steps of its round; None where they are not possible.

    They are numbers in JSON, in a tensor of a safetensors blob.
    """
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        blob = unsealed(read_own(path, BLOB_BYTES))
        header_bytes = int.from_bytes(blob[:8], "little")
        table: Any = json.loads(blob[8 : 8 + header_bytes])
        begin, end = table["plain"]["data_offsets"]
        _, step, number, _ = json.loads(blob[8 + header_bytes + begin : 8 + header_bytes + end])
        steps = dict(enumerate(request.rounds))[number].steps_run
        return (step, steps) if isinstance(step, int) and 0 <= step <= steps * CALLS_MOST else None
    return None
