"""sdcli txt2img PROMPT: words to a picture."""

from __future__ import annotations

from typing import Any

import click

from sdcli.cli.command import Command
from sdcli.cli.draw import draw
from sdcli.cli.lines import jobs
from sdcli.cli.options import drawing_options
from sdcli.cli.pages import PAGES, RECEIPT, pages_of
from sdcli.cli.parsed import asked_of, product_of, voice_of


@click.command(cls=Command)
@drawing_options(pages=PAGES + RECEIPT)
def command(**params: Any) -> None:
    """Draw a picture from words.

    Before any weights load it is worked out whether the request fits under the ceiling; if not, the run ends
    with what would (exit code 4). While it runs, the footprint is kept under the ceiling: where it would be
    crossed, the run goes on with a smaller plan, and where there is none it is ended with one line that says
    where (137). An empty PROMPT draws an unconditional picture.
    """
    with pages_of(params, voice_of(params)) as pages:
        for job in jobs(params, voice_of(params)):
            draw(asked_of(job), product_of(job), voice_of(job), pages)
