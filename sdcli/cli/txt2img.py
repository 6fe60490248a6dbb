"""sdcli txt2img PROMPT: words to a picture."""

from __future__ import annotations

from typing import Any

import click

from sdcli.cli.draw import build_request, build_task, draw, find_model, warn_of_negative
from sdcli.cli.options import Command, drawing_options, require_one_product, require_prompt


@click.command(cls=Command)
@drawing_options()
def command(prompt: str | None, prompt_option: str | None, prompt_file: str | None, **chosen: Any) -> None:
    """Draw a picture from words.

    Before any weights load it is worked out whether the request fits under the ceiling; if not, the run ends
    with what would (exit code 4). While it runs, the footprint is kept under the ceiling or the run is
    killed with one line that says where (137). An empty PROMPT draws an unconditional picture.
    """
    from sdcli.images.write import plan_output  # here, because Pillow takes a third of the time that --help takes

    chosen["prompt"] = require_prompt(prompt, prompt_option, prompt_file)
    require_one_product(chosen["output"], chosen["as_json"])
    destination = plan_output(chosen["output"], chosen["count"], force=chosen["force"])
    model = find_model(chosen["model"], quiet=chosen["quiet"], debug=chosen["debug"])
    request = build_request(model, chosen)
    warn_of_negative(request, quiet=chosen["quiet"])
    task = build_task(model, request, chosen)
    draw(task, destination, chosen)
