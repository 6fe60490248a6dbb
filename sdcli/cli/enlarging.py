"""The options of --hires: the picture once more, larger."""

from __future__ import annotations

from typing import Any

import click

from sdcli.app.asked import HIRES_STRENGTH, HIRES_UPSCALER
from sdcli.cli.types import FiniteNumber, Size, WholeNumber
from sdcli.errors import echo

LEAST, MOST = 1.0, 8.0
"""Times that a picture may be enlarged."""


class Larger(click.ParamType):
    """How many times as large, as in 2x or 1.5, or width and height, as in 1024x768."""

    name = "factor"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | tuple[int, int]:
        if isinstance(value, float | tuple):
            return value
        text = str(value).strip().lower()
        if "x" in text.removesuffix("x"):
            return Size().convert(text, param, ctx)
        try:
            return FiniteNumber(LEAST, MOST).convert(text.removesuffix("x"), param, ctx)
        except click.BadParameter:
            what = f"{echo(value)} is neither a factor from {LEAST:g} to {MOST:g}, as in 2x, nor a size, as in 1024x768"
            self.fail(what, param, ctx)


HIRES = (
    click.option("--hires", type=Larger(), help="Draw the picture once more, larger: 2x, 1.5x, or a size as 1024x768."),
    click.option(
        "--hires-strength",
        type=FiniteNumber(0, 1),
        help=f"How much of the enlarged picture changes, 0 to 1.  [default: {HIRES_STRENGTH}]",
    ),
    click.option(
        "--hires-steps",
        type=WholeNumber(1, 1000),
        help="Steps at the larger size, all of which are run.  [default: as many as --steps]",
    ),
    click.option(
        "--hires-upscaler",
        type=click.Choice(["latent", "lanczos"]),
        help="What enlarges: latents between their neighbours, or the picture itself, which is decoded and encoded for"
        f" it.  [default: {HIRES_UPSCALER}]",
    ),
)
