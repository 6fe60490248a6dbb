"""What txt2img and img2img share: from what is asked for to files and a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sdcli.app.asked import Asked
from sdcli.app.making import with_weights
from sdcli.app.pictures import saving
from sdcli.app.record import RunRecord, Task
from sdcli.app.report import report
from sdcli.app.run import run_task
from sdcli.app.tasks import prepare
from sdcli.cli.parsed import Product
from sdcli.cli.preview import Previews, previews_of
from sdcli.cli.progress import ProgressLines, making_lines
from sdcli.cli.say import Voice, hand_out, say
from sdcli.errors import SdcliError
from sdcli.messages import PictureDone

if TYPE_CHECKING:
    from sdcli.images.write import Destination


def draw(asked: Asked, product: Product, voice: Voice, look: Callable[[Task], None] | None = None) -> None:
    """Draw what is asked for. Where it goes is tried before anything else is looked at; `look` sees the task."""
    from sdcli.images.write import plan_output  # here, because Pillow takes a third of the time that --help takes

    destination = plan_output(product.output, asked.count, force=product.force)
    previews = previews_of(product.preview, product.output, product.force, voice.quiet)
    if previews is None:
        asked = replace(asked, preview_every=0)
    task = prepare(asked, voice.tell, voice.debug)
    if look is not None:
        look(task)
    carry_out(with_weights(task, making_lines(voice)), destination, product, voice, previews)


def carry_out(
    task: Task, destination: Destination, product: Product, voice: Voice, previews: Previews | None = None
) -> None:
    """Run the task; every picture is on disk, and its path handed out, before the next one is decoded.

    What ends the run early is raised when the report of what was drawn by then is out.
    """
    request = task.request
    destination.require_room(request.count, *task.pictures_size)
    record = RunRecord(task)
    progress = ProgressLines(record, task.ceiling, quiet=voice.quiet, verbose=voice.verbose, previews=previews)
    paths = _Paths(quiet=product.as_json)
    save = saving(task, destination, keep_text=not product.no_metadata)

    def save_and_say(picture: PictureDone, record: RunRecord) -> str | None:
        path = save(picture, record)
        if path is not None:
            progress.clear()
            paths.hand_out(path)
        return path

    try:
        run_task(task, record, save_and_say, progress)
    except BaseException:
        progress.clear()
        if voice.debug and record.traceback:
            say(record.traceback)
        if record.pictures and product.as_json:
            hand_out(json.dumps(report(record)))
        if record.pictures:
            voice.say(f"saved before that: {len(record.pictures)} of {request.count}")
        raise
    if product.as_json:
        hand_out(json.dumps(report(record)))
    voice.say(progress.summary())
    if paths.failure is not None:
        raise paths.failure


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
