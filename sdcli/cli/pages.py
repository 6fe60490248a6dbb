"""--report and --plot: a page and a picture that show how runs went, also those that failed."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from sdcli.app.record import RunRecord
from sdcli.app.showing import THUMBNAILS, shown_machine, shown_run, without_home
from sdcli.cli.main import COMMAND_LINE
from sdcli.cli.say import Voice
from sdcli.cli.types import FilePath
from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.settings import at_home

if TYPE_CHECKING:
    from sdcli.images.write import Destination

LIBRARIES = ("matplotlib", "jinja2")
"""Of the extra `report`."""


class FileOf(FilePath):
    """A file whose name ends in this."""

    def __init__(self, suffix: str) -> None:
        super().__init__("file")
        self._suffix = suffix

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not str(value).lower().endswith(self._suffix):
            self.fail(f"{echo(value)}: give a {self._suffix} file", param, ctx)
        return super().convert(value, param, ctx)


PAGES = (
    click.option(
        "--report",
        type=FileOf(".html"),
        metavar="FILE.html",
        help="Write a page that shows how it went: footprint over time, prediction and peak, seconds.",
    ),
    click.option("--plot", type=FileOf(".png"), metavar="FILE.png", help="Write its main chart as a picture."),
)


RECEIPT = (
    click.option(
        "--receipt",
        is_flag=True,
        help="Let the picture say what it took: ceiling, prediction, peak, seconds. Its bytes then differ each time.",
    ),
)


class Pages:
    """What is to be shown of the runs of one command, and where it goes; nothing if neither is asked for."""

    def __init__(self, report: str | None, plot: str | None, force: bool) -> None:
        self._report, self._plot, self._force = report, plot, force
        self._runs: list[dict[str, Any]] = []
        self._machine: dict[str, str] = {}

    def require(self) -> None:
        """Raise BadRequest without the libraries, SdcliError where the files cannot be written."""
        files = {"--report": self._report, "--plot": self._plot}
        asked = {option: path for option, path in files.items() if path is not None}
        if not asked:
            return
        if not all(map(importlib.util.find_spec, LIBRARIES)):
            raise BadRequest(f'{next(iter(asked))} needs {" and ".join(LIBRARIES)}: pip install "sdcli[report]"')
        from sdcli.images.write import require_file  # here, because Pillow takes a third of the time that --help takes

        for option, path in asked.items():
            require_file(path, self._force, option)

    def require_apart(self, destination: Destination, preview: str | None = None) -> None:
        """Raise BadRequest where the chart would take the place of a picture, or of its preview."""
        if self._plot is None:
            return
        if destination.takes(self._plot):
            raise BadRequest(f"--plot {echo(self._plot)} is the --output as well: give another file")
        if preview is not None and os.path.realpath(at_home(preview)) == os.path.realpath(self._plot):
            raise BadRequest(f"--plot {echo(self._plot)} is the --preview as well: give another file")

    def take(self, record: RunRecord, error: BaseException | None = None, outcome: str | None = None) -> None:
        """A run that is over, and what ended it early. Its outcome may be known by name."""
        if self._report is None and self._plot is None:
            return
        shown = sum(len(run["thumbnails"]) for run in self._runs)
        run = shown_run(record, error, max(0, 2 * THUMBNAILS - shown))
        self._runs.append(run if outcome is None else {**run, "outcome": outcome})
        self._machine = shown_machine(record)

    def write(self, voice: Voice) -> None:
        """Write what is asked for, if there was a run, and say so. Raises SdcliError for what cannot be written."""
        if not self._runs:
            return
        from sdcli.images.write import save_file
        from sdcli.pages.page import page, plot  # here, because matplotlib takes half a second

        runs = without_home(self._runs)
        if self._report is not None:
            save_file(self._report, page(runs, self._about()).encode("utf-8", "replace"), self._force)
            voice.say(f"report: {echo(self._report)}")
        if self._plot is not None and (picture := plot(runs)) is not None:
            save_file(self._plot, picture, self._force)
            voice.say(f"plot: {echo(self._plot)}")

    def _about(self) -> dict[str, Any]:
        line = click.get_current_context().meta.get(COMMAND_LINE, [])
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return without_home({"command": shlex.join(["sdcli", *line]), "machine": self._machine, "made": made})


@contextmanager
def pages_of(params: Mapping[str, Any], voice: Voice) -> Iterator[Pages]:
    """Pages of what is done inside, refused before and written after it, whatever ended it."""
    pages = Pages(params["report"], params["plot"], params["force"])
    pages.require()
    try:
        yield pages
    except BaseException:
        try:
            pages.write(voice)
        except (SdcliError, OSError) as trouble:  # what ended the run is what is raised
            voice.warn(str(trouble))
        raise
    pages.write(voice)
