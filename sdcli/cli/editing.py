"""The options of an init image: what of it changes, and how it comes to its size."""

from __future__ import annotations

from typing import Any

import click

from sdcli.app.asked import MASK_BLUR, STRENGTH
from sdcli.cli import types
from sdcli.cli.options import Decorator
from sdcli.errors import BadRequest


class Colour(click.ParamType):
    """A colour by its name in CSS, or as #rrggbb."""

    name = "colour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if isinstance(value, tuple) or value == "white":
            return value if isinstance(value, tuple) else (255, 255, 255)
        from sdcli.images.flatten import (
            colour_named,  # here, because Pillow takes a third of the time that --help takes
        )

        try:
            return colour_named(str(value))
        except BadRequest as error:
            self.fail(str(error), param, ctx)


def init_options(about: str, about_strength: str, required: bool, envvar: str | None = None) -> tuple[Decorator, ...]:
    """The options of the init image."""
    return (
        click.option("-i", "--init", type=types.FilePath(), help=f"{about} Also --init-img.", required=required),
        click.option(
            "--strength",
            type=types.FiniteNumber(0, 1),
            default=STRENGTH,
            show_default=True,
            envvar=envvar,
            help=about_strength,
        ),
        click.option(
            "--mask",
            type=types.FilePath(),
            help="A picture of which what is white changes, or alpha: what is transparent in the init image.",
        ),
        click.option(
            "--mask-blur",
            type=types.WholeNumber(0, 64),
            default=MASK_BLUR,
            show_default=True,
            help="Pixels over which what is drawn goes over into what was there.",
        ),
        click.option("--invert-mask", is_flag=True, help="What is black changes, or what is opaque."),
        click.option(
            "--inpaint-area",
            type=click.Choice(["whole", "masked"]),
            default="whole",
            show_default=True,
            help="Draw the whole picture, or the masked part alone at the size asked for, and put it back.",
        ),
        click.option(
            "--outpaint",
            type=types.Margins(),
            help="Draw margins: pixels left, above, right and below, as in 0,0,128,0.",
        ),
        click.option(
            "--background",
            type=Colour(),
            default="white",
            show_default=True,
            help="What transparency of the init image is laid on: a colour's name, or #rrggbb.",
        ),
        click.option(
            "--fit",
            type=click.Choice(["crop", "pad", "stretch", "exact"]),
            default="crop",
            show_default=True,
            help="How the init image comes to another shape; exact: not at all.",
        ),
    )
