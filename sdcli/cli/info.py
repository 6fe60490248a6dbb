"""sdcli info PICTURE: what a picture says of how it was made."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sdcli.app.replay import WRITERS, info_report
from sdcli.cli import types
from sdcli.cli.say import hand_out
from sdcli.errors import printable


@click.command()
@click.argument("picture", type=types.FilePath())
@click.option("--json", "as_json", is_flag=True, help="A JSON report instead of lines.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(picture: str, as_json: bool, debug: bool) -> None:
    """Print what a picture says of how it was made.

    PNG, JPEG or WebP, of sdcli, A1111, stable-diffusion.cpp or ComfyUI. Nothing is drawn, and no pixel is decoded.
    """
    from sdcli.images.told import read_told  # here, because Pillow takes a third of the time that --help takes

    told = read_told(Path(picture))
    report = info_report(picture, told)
    if as_json:
        hand_out(json.dumps(report))
        return
    hand_out(f"{told.format}, {told.width}x{told.height}, written by {WRITERS[told.writer]}")
    for name, value in {**report["said"], **report["unknown"]}.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        hand_out(f"{printable(name)}: {printable(text)}")
