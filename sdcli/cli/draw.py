"""What txt2img and img2img share: from what is asked for to files and a report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace

from sdcli.app.asked import Asked
from sdcli.app.making import with_weights
from sdcli.app.pictures import saving
from sdcli.app.record import RunRecord, Task, Wanted
from sdcli.app.report import report
from sdcli.app.run import run_task
from sdcli.app.tasks import prepare
from sdcli.app.unfinished import sweep
from sdcli.cli.pages import Pages
from sdcli.cli.parsed import Product
from sdcli.cli.preview import Previews, previews_of
from sdcli.cli.progress import ProgressLines, making_lines
from sdcli.cli.say import Voice, hand_out, say
from sdcli.errors import CheckpointDamaged, Interrupted, SdcliError
from sdcli.messages import PictureDone


def draw(
    asked: Asked,
    product: Product,
    voice: Voice,
    pages: Pages,
    look: Callable[[Task], None] = lambda _: None,
) -> None:
    """Draw what is asked for. Where it goes is tried before anything else is looked at; `look` sees the task."""
    from sdcli.images.write import plan_output  # here, because Pillow takes a third of the time that --help takes

    destination = plan_output(product.output, asked.count, force=product.force)
    pages.require_apart(destination, product.preview)
    previews = previews_of(product.preview, destination, product.force, voice.quiet)
    if previews is None:
        asked = replace(asked, preview_every=0)
    task = prepare(asked, voice.tell, voice.debug)
    look(task)
    wanted = Wanted(destination, not product.no_metadata, working_folder(), product.receipt)
    carry_out(RunRecord(with_weights(task, making_lines(voice))), wanted, product.as_json, voice, pages, previews)


def working_folder() -> str:
    """Where names of files begin; the root where it has been deleted."""
    try:
        return os.getcwd()
    except OSError:
        return os.sep


def carry_out(
    record: RunRecord, wanted: Wanted, as_json: bool, voice: Voice, pages: Pages, previews: Previews | None = None
) -> None:
    """Do what is left of a run; every picture is on disk, and its path handed out, before the next one is decoded.

    What ends the run early is raised when the report of what was drawn by then is out.
    """
    task, request = record.task, record.task.request
    record.wanted = wanted
    wanted.destination.require_room(len(record.unsaved), *task.pictures_size)
    sweep(voice.warn)
    progress = ProgressLines(record, task.ceiling, quiet=voice.quiet, verbose=voice.verbose, previews=previews)
    paths = _Paths(quiet=as_json)
    save = saving(task, wanted)

    def save_and_say(picture: PictureDone, record: RunRecord) -> str | None:
        path = save(picture, record)
        if path is not None:
            progress.clear()
            paths.hand_out(path)
        return path

    try:
        run_task(task, record, save_and_say, progress)
    except BaseException as error:
        progress.clear()
        if voice.debug and record.traceback:
            say(record.traceback)
        pages.take(record, error)
        if record.pictures and as_json:
            hand_out(json.dumps(report(record)))
        if record.pictures:
            voice.say(f"saved before that: {len(record.pictures)} of {request.count}")
        if record.folder.left is not None and not isinstance(error, CheckpointDamaged):
            _name_the_way_on(error, f"sdcli resume {record.folder.left} goes on with it", voice)
        raise
    pages.take(record)
    if as_json:
        hand_out(json.dumps(report(record)))
    voice.say(progress.summary())
    if paths.failure is not None:
        raise paths.failure


def _name_the_way_on(error: BaseException, way: str, voice: Voice) -> None:
    """In the error's own line, which is the last one, where it is one of ours."""
    if isinstance(error, SdcliError | Interrupted):
        error.args = (f"{error}; {way}",)
    else:
        voice.say(way)


class _Paths:
    """Hands out paths while somebody reads them; `failure` is why nobody does: the pictures are drawn all the same."""

    def __init__(self, quiet: bool) -> None:
        self.failure: OSError | SdcliError | None = None
        self._quiet = quiet

    def hand_out(self, path: str) -> None:
        """One path."""
        if self._quiet or self.failure is not None:
            return
        try:
            hand_out(path)
        except (BrokenPipeError, SdcliError) as error:
            self.failure = error
