"""The options of an init image: what of it changes, and how it comes to its size."""

from __future__ import annotations

import click

from sdcli.app.asked import MASK_BLUR, STRENGTH
from sdcli.cli import types
from sdcli.cli.options import Decorator


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
            "--fit",
            type=click.Choice(["crop", "pad", "stretch", "exact"]),
            default="crop",
            show_default=True,
            help="How the init image comes to another shape; exact: not at all.",
        ),
    )
