"""sdcli img2img PROMPT --init IMAGE: words and a picture to a picture."""

from __future__ import annotations

import hashlib
from typing import Any

import click

from sdcli.cli import types
from sdcli.cli.draw import build_request, build_task, draw, find_model, read_init, warn_of_negative
from sdcli.cli.options import (
    STRENGTH_DEFAULT,
    Command,
    drawing_options,
    init_option,
    require_one_product,
    require_prompt,
)

INIT = (
    init_option("The picture to edit: PNG, JPEG or WEBP.", required=True),
    click.option(
        "--strength",
        type=types.FiniteNumber(0, 1),
        default=STRENGTH_DEFAULT,
        show_default=True,
        envvar="SDCLI_STRENGTH",
        help="How much to change, 0 to 1: 0 only passes the picture through the autoencoder, 1 starts from noise.",
    ),
)


@click.command(cls=Command)
@drawing_options(INIT)
def command(
    prompt: str | None, prompt_option: str | None, prompt_file: str | None, init: str, strength: float, **chosen: Any
) -> None:
    """Edit a picture with words.

    Without -W and -H the result has the size of the init image, rounded to multiples of 8. With them, the
    image is scaled to cover that size and its centre is taken. The ceiling holds as for txt2img.
    """
    from sdcli.images.write import plan_output  # here, because Pillow takes a third of the time that --help takes

    chosen["prompt"] = require_prompt(prompt, prompt_option, prompt_file)
    require_one_product(chosen["output"], chosen["as_json"])
    destination = plan_output(chosen["output"], chosen["count"], force=chosen["force"])
    image = read_init(init, chosen)
    model = find_model(chosen["model"], quiet=chosen["quiet"], debug=chosen["debug"])
    request = build_request(model, chosen, width=image.width, height=image.height, strength=strength)
    warn_of_negative(request, quiet=chosen["quiet"])
    task = build_task(model, request, chosen, image.pixels)
    draw(task, destination, chosen, hashlib.sha256(image.pixels).hexdigest())
