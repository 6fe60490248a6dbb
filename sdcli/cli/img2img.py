"""sdcli img2img PROMPT --init IMAGE: words and a picture to a picture."""

from __future__ import annotations

from typing import Any

import click

from sdcli.cli.command import Command
from sdcli.cli.draw import draw
from sdcli.cli.editing import init_options
from sdcli.cli.lines import jobs
from sdcli.cli.options import drawing_options
from sdcli.cli.pages import PAGES, RECEIPT, pages_of
from sdcli.cli.parsed import asked_of, product_of, voice_of

INIT = init_options(
    "The picture to edit: PNG, JPEG or WEBP.",
    "How much to change, 0 to 1: 0 only passes the picture through the autoencoder, 1 starts from noise.",
    required=True,
    envvar="SDCLI_STRENGTH",
)


@click.command(cls=Command)
@drawing_options(INIT, PAGES + RECEIPT)
def command(**params: Any) -> None:
    """Edit a picture with words.

    Without -W and -H the result has the size of the init image, rounded to multiples of 8. With them, the
    image is scaled to cover that size and its centre is taken. The ceiling holds as for txt2img.
    """
    with pages_of(params, voice_of(params)) as pages:
        for job in jobs(params, voice_of(params)):
            draw(asked_of(job), product_of(job), voice_of(job), pages)
