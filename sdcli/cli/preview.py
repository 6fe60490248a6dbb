"""--preview: about what a picture will be, every few steps, in the terminal or in a file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdcli.cli.say import is_terminal, say
from sdcli.cli.types import WholeNumber
from sdcli.errors import BadRequest, echo
from sdcli.messages import Preview
from sdcli.settings import at_home

if TYPE_CHECKING:
    from sdcli.images.preview import Protocol
    from sdcli.images.write import Destination

TERMINAL = "terminal"
"""What the option is where no file is named."""

EVERY = 5

ROWS_MOST, MARGIN = 20, 4
"""Rows of a picture at most, and rows of the terminal that are left to words."""


class Where(click.ParamType):
    """A .png file: what is none is perhaps the prompt, and that should be said."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != TERMINAL and not str(value).lower().endswith(".png"):
            self.fail(f"{echo(value)}: give a .png file, or --preview alone, after the prompt", param, ctx)
        return str(value)


PREVIEW = (
    click.option(
        "--preview",
        type=Where(),
        is_flag=False,
        flag_value=TERMINAL,
        metavar="[FILE.png]",
        help="Show about what the picture will be while it is drawn: in the terminal, or in a file that is replaced"
        " each time. Put it after the prompt.",
    ),
    click.option(
        "--preview-every",
        type=WholeNumber(1, 1000),
        default=EVERY,
        show_default=True,
        help="Steps from one preview to the next.",
    ),
)


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """What the terminal shows pictures by, as far as its environment tells; in tmux and screen, half blocks."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if "sixel" in term or term.startswith(("foot", "mlterm", "yaft")) else "blocks"


class Previews:
    """Shows previews: in `file` if it is a path, else on the terminal."""

    def __init__(self, file: str | None) -> None:
        self._file, self._rows = file, 0

    @property
    def on_terminal(self) -> bool:
        """Whether lines of progress have to make way."""
        return self._file is None

    def moved(self) -> None:
        """Something else was printed: the next one goes below it."""
        self._rows = 0

    def show(self, preview: Preview) -> None:
        """In the place of the one before, if nothing was printed since. A file that cannot be written is let be."""
        from sdcli.images.preview import lines_of, picture_of, png_of  # here, because Pillow takes long to import

        picture = picture_of(preview.width, preview.height, preview.payload)
        if self._file is not None:
            self._put(self._file, png_of(picture))
            return
        columns, lines = shutil.get_terminal_size()
        rows = max(1, min(ROWS_MOST, lines - MARGIN, (columns - 1) * picture.height // (2 * picture.width)))
        cells = max(1, min(columns - 1, round(2 * rows * picture.width / picture.height))), rows
        up = f"\x1b[{self._rows}A\r" if self._rows else "\r"
        true_colour = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
        say(up + "\n".join(lines_of(picture, protocol_of(os.environ), cells, os.getpid(), true_colour)))
        self._rows = rows

    def _put(self, file: str, data: bytes) -> None:
        from sdcli.images.atomic import place

        with suppress(OSError):
            place(os.path.dirname(file) or ".", [os.path.basename(file)], data, replace=True)


def previews_of(asked: str | None, destination: Destination, force: bool, quiet: bool) -> Previews | None:
    """What shows previews, None where nobody wants any. Raises BadRequest for a file that may not be replaced."""
    if asked is None:
        return None
    if asked != TERMINAL:
        return Previews(_checked(at_home(asked), destination, force))
    if quiet:
        return None
    if not is_terminal():
        say("--preview: nothing is shown, since stderr is no terminal: give --preview FILE.png")
        return None
    if "NO_COLOR" in os.environ or "utf" not in (sys.stderr.encoding or "").lower():
        say("--preview: nothing is shown, since this terminal takes no colours: give --preview FILE.png")
        return None
    return Previews(None)


def _checked(file: str, destination: Destination, force: bool) -> str:
    from sdcli.images.preview import is_preview

    path = Path(file)
    if destination.takes(file):
        raise BadRequest(f"--preview {echo(file)} is the --output as well: give another file")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise BadRequest(f"--preview {echo(file)}: no file can be there; give one in a folder that exists")
    if path.exists() and not force:
        with path.open("rb") as stream:
            if not is_preview(stream.read(256)):
                raise BadRequest(f"--preview {echo(file)} exists and is no preview: give another file, or --force")
    return file
