"""Going on with a run that was ended: its task and its record, as they were, unless other bits would come of it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from sdcli.app.asked import Note, OnLimit, Tell
from sdcli.app.folder import MARK_BYTES, RETRY, RunFolder
from sdcli.app.own_files import read_own
from sdcli.app.record import RunRecord, Task
from sdcli.app.run_file import Maker, RunFile
from sdcli.app.runs import hold
from sdcli.app.unfinished import Unfinished, clean_after
from sdcli.domain import DtypeName
from sdcli.errors import SdcliError
from sdcli.messages import PictureDone
from sdcli.plan.ceiling import decide_ceiling

if TYPE_CHECKING:
    from sdcli.images.write import Destination


def reopen(
    run: Unfinished,
    tell: Tell,
    mem_limit: str | None = None,
    on_limit: OnLimit | None = None,
    anyway: bool = False,
    debug: bool = False,
) -> RunRecord:
    """The record of a run that goes on, with what was saved by then; its folder is locked. What is given goes before
    what the run had.

    Raises SdcliError for one that is in use, that cannot be read, or of which other bits would come, unless `anyway`.
    """
    lock = hold(run.folder)
    if lock is None:
        raise SdcliError(f"the run {run.id} goes on in another process: wait for it, or end it")
    try:
        task = _task(run.file, mem_limit, on_limit, debug, tell)
        difference = run.file.maker.difference(Maker.here()) or run.file.model_changed(task)
        if difference is not None and not anyway:
            raise SdcliError(f"other bits may come of it: {difference}; --anyway goes on all the same")
        if difference is not None:
            tell(Note(f"other bits may come of it: {difference}", "warning"))
        clean_after(run.file, lock)
        folder = RunFolder.reopened(run.folder, lock, run.count)
    except BaseException:
        os.close(lock)
        raise
    record = RunRecord(task, folder=folder)
    record.drawn_on = None if anyway else run.file.device
    _take_up(record)
    return record


def _task(file: RunFile, mem_limit: str | None, on_limit: OnLimit | None, debug: bool, tell: Tell) -> Task:
    task = file.task()
    ceiling = replace(task.ceiling, kernel_limit_bytes=None)  # that was for a measurement
    task = replace(task, debug=debug, ceiling=ceiling)
    if on_limit is not None:
        task = replace(task, on_limit=on_limit)
    if mem_limit is not None:
        task = replace(task, ceiling=decide_ceiling(mem_limit, task.device))
        if task.ceiling.warning:
            tell(Note(task.ceiling.warning, "warning"))
    return task


def _take_up(record: RunRecord) -> None:
    """Note what the run had done."""
    folder, task = record.folder, record.task
    types = dict.fromkeys(range(task.request.count), task.dtype)
    if folder.path is not None:
        changed = _retry(folder.path)
        if changed is not None:
            record.goes_on_in, before = changed
            types = {image: before.get(image, record.goes_on_in) for image in types}
    for image in sorted(folder.saved.keys() | folder.latents.keys()):
        record.denoised_in[image] = types[image]
        folder.checkpoints.drop(image)
    width, height = task.pictures_size
    for image, path in sorted(folder.saved.items()):
        record.pictures.append((path, PictureDone(image, task.request.seeds[image], width, height)))


def _retry(path: Path) -> tuple[DtypeName, dict[int, DtypeName]] | None:
    """The type that steps went on in, and what pictures were denoised in before that; None where it did not change."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        table = json.loads(read_own(path / RETRY, MARK_BYTES))
        before = {int(image): dtype for image, dtype in table["denoised"].items()}
        if all(dtype in get_args(DtypeName) for dtype in (table["dtype"], *before.values())):
            return table["dtype"], before
    return None


def require_place(record: RunRecord, place: Destination) -> None:
    """Raise SdcliError, before anything is computed, if the pictures cannot go there."""
    place.require_usable(image for image in record.unsaved if image not in record.folder.placing)
