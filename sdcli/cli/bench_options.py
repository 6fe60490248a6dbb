"""The options that bench alone has: which cases there are, what is edited, what it is compared with."""

from __future__ import annotations

from typing import Any

import click

from sdcli.app.asked import STRENGTH
from sdcli.cli import types
from sdcli.cli.options import Decorator

REPEATS_MOST = 1000


class Several(click.ParamType):
    """Values of one kind, with commas between them: a tuple."""

    envvar_list_splitter = ","

    def __init__(self, kind: click.ParamType) -> None:
        self._kind, self.name = kind, f"{kind.name}[,{kind.name}…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(self._kind.convert(part.strip(), param, ctx) for part in str(value).split(","))


CASES: tuple[Decorator, ...] = (
    click.option(
        "--mem-limit",
        "limits",
        type=Several(types.Limit()),
        multiple=True,
        envvar="SDCLI_MEM_LIMIT",
        help="Ceilings, repeated or with commas.  [default: auto]",
    ),
    click.option(
        "--profile",
        "profiles",
        type=Several(click.STRING),
        multiple=True,
        envvar="SDCLI_PROFILE",
        help="Devices to pose as: their ceilings, likewise.",
    ),
    click.option(
        "--sizes",
        type=Several(types.Size()),
        multiple=True,
        help="Sizes of pictures, likewise, as in 512x512,768x512: each under every ceiling.",
    ),
    click.option(
        "--repeat",
        type=types.WholeNumber(1, REPEATS_MOST),
        default=1,
        show_default=True,
        help="Runs of each case; every time another one begins.",
    ),
)

EDIT: tuple[Decorator, ...] = (
    click.option("--img2img", is_flag=True, help="Edit a picture of bench's own, at the size of each case."),
    click.option("-i", "--init", type=types.FilePath(), help="Edit this picture instead. Also --init-img."),
    click.option(
        "--strength",
        type=types.FiniteNumber(0, 1),
        default=STRENGTH,
        show_default=True,
        envvar="SDCLI_STRENGTH",
        help="How much to change of it.",
    ),
)

AGAINST: tuple[Decorator, ...] = (
    click.option("--against", type=types.FilePath(), help="Tell what changed since a bench whose JSON lies there."),
    click.option(
        "--max-slowdown",
        type=types.FiniteNumber(0),
        help="Exit code 1 where time has grown by more than so many percent, beyond the noise.",
    ),
    click.option("--max-growth", type=types.FiniteNumber(0), help="Likewise where memory has."),
)
