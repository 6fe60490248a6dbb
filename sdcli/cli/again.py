"""sdcli again PICTURE: draw a picture again from what it says of itself, with any option changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sdcli.app.replay import compare, replay_of, require_given
from sdcli.cli import types
from sdcli.cli.command import Command
from sdcli.cli.draw import draw
from sdcli.cli.editing import init_options
from sdcli.cli.enlarging import HIRES
from sdcli.cli.options import (
    ADDED,
    JOB,
    LIMIT,
    MACHINE,
    OUTPUT,
    PROMPT,
    REFERENCES,
    REPORT,
    TALK,
    model_option,
    options,
)
from sdcli.cli.pages import PAGES, RECEIPT, pages_of
from sdcli.cli.parsed import WAYS, asked_of, product_of, voice_of
from sdcli.cli.prompt_types import Text
from sdcli.errors import BadRequest
from sdcli.families.registry import part_options

INIT = init_options("The picture that it was drawn from.", "As for img2img.", required=False)


_PICTURES = {
    "sampler",
    "schedule",
    "clip_skip",
    "prediction",
    "decoder",
    "original_size",
    "crop",
    "target_size",
    "embedding_dir",
    "lora_dir",
    "references",
}
_PICTURES |= {option[2:].replace("-", "_") for option in part_options()}
"""Options that the environment and the config file have no say in, whether the picture has them or not."""


@click.command(cls=Command)
@click.argument("picture", type=types.FilePath())
@options(
    PROMPT[1:],
    INIT,
    REFERENCES,
    model_option("the picture's"),
    ADDED,
    JOB,
    HIRES,
    OUTPUT,
    MACHINE,
    LIMIT,
    REPORT,
    PAGES,
    RECEIPT,
    TALK,
)
def command(picture: str, **params: Any) -> None:
    """Draw a picture again from what it says of itself.

    All options that are given replace what the picture says. A picture of sdcli is drawn with the same bits, where
    model and machine are the same; of what A1111, stable-diffusion.cpp and ComfyUI write it is said what is not known.
    """
    from sdcli.images.told import read_told  # here, because Pillow takes a third of the time that --help takes

    voice = voice_of(params)
    told = read_told(Path(picture))
    said = _said(params)
    found = replay_of(told, said | ({"prompt"} if not said.isdisjoint(WAYS) else set()))
    for option, what in found.notes:
        if option not in said:
            voice.say(what)
    params |= {"prompt": None}
    if not said.isdisjoint(WAYS):
        found.options.pop("prompt", None)
    if "model" in said:  # whose other parts are not this one's
        found.options = {name: value for name, value in found.options.items() if not name.startswith("part ")}
        found.options.pop("prediction", None)
    for name in params.keys() & _PICTURES - said:  # the picture's, or none
        params[name] = None
    named = {f"part {part}": option[2:].replace("-", "_") for option, part in part_options().items()}
    for name, value in found.options.items():
        param = named.get(name, name)
        if param in params and param not in said:
            params[param] = _taken(param, value)
    require_given(told, params)
    with pages_of(params, voice) as pages:
        draw(asked_of(params), product_of(params), voice, pages, lambda task: compare(told, task, voice.tell))


def _said(params: dict[str, Any]) -> set[str]:
    """The parameters that the command line has."""
    source = click.get_current_context().get_parameter_source
    said = {name for name in params if source(name) is ParameterSource.COMMANDLINE}
    return said | ({"width", "height"} if source("size") is ParameterSource.COMMANDLINE else set())


def _taken(name: str, value: Any) -> Any:
    """A value of the picture as its option takes it. Raises BadRequest for one that it does not take."""
    ctx = click.get_current_context()
    option = next((param for param in ctx.command.params if param.name == name), None)
    kind = Text() if option is None or name == "prompt" else option.type
    try:
        if isinstance(value, list):
            return tuple(kind.convert(one, None, ctx) for one in value)
        return kind.convert(value, None, ctx)
    except (click.UsageError, BadRequest) as error:
        what = error.message if isinstance(error, click.UsageError) else str(error)
        raise BadRequest(f"the picture's {name}: {what.rstrip('.')}; give it as an option") from error
