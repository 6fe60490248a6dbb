"""sdcli doctor: what this machine is, whether it computes right, and which models fit, in what time."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import click

from sdcli import __version__
from sdcli.app.checkup import Finding
from sdcli.app.counting import Counting
from sdcli.app.doctor import Diagnosis, asked_of_doctor, diagnosis_report, examine, measure_into
from sdcli.app.outlook import Outlook, Row, outlook
from sdcli.cli import types
from sdcli.cli.anonymous import anonymous
from sdcli.cli.command import Command
from sdcli.cli.options import CEILING, COMPUTING, TALK, option, options
from sdcli.cli.parsed import voice_of
from sdcli.cli.progress import Moving
from sdcli.cli.say import hand_out
from sdcli.errors import SdcliError, printable
from sdcli.models.synthetic import SYNTHETIC
from sdcli.settings import read_profile
from sdcli.units import format_duration, format_size

NAME_WIDTH, REF_WIDTH = 16, 26
NARROW, WIDE = 60, 120
"""Text is never laid out for less or more columns."""

MARKS = {"good": " ", "note": "!", "broken": "X"}

HEADER = ("model", "size", "fits", "least", "a step", "steps", "a picture", "download")


@click.command(cls=Command)
@options(COMPUTING, CEILING)
@option(
    "--profile",
    "profiles",
    type=types.ProfileName(),
    multiple=True,
    show_default=False,
    help="What fits on that machine instead of this one, as sdcli plan --profile tells. May be repeated.",
)
@click.option("--quick", is_flag=True, help="Leave out what fits, which takes a while at first.")
@click.option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of text.")
@click.option("--report", is_flag=True, help="To paste in a bug report: without names of yours, folders or machines.")
@options(TALK)
def command(**params: Any) -> None:
    """Say what this machine is, whether it computes right, and which models fit, in what time.

    Device, type, memory, ceiling, folders and versions, each with its reason; speeds of memory and disk; a short test
    of the arithmetic; and what each model at its usual sizes would take. Nothing is drawn or fetched. Exit code 1 where
    something is broken.
    """
    voice = voice_of(params)
    said: Callable[[str], str] = anonymous if params["report"] else lambda text: text
    posed = [read_profile(name) for name in dict.fromkeys(params["profiles"])]
    found = examine(asked_of_doctor(params["device"], params["dtype"], params["mem_limit"]), voice.tell, voice.debug)
    as_text = not params["as_json"]
    if as_text:
        _print([f"sdcli {__version__}", ""], said)
        _print(_lines(found.findings), said)
        _print([*_wrapped(" ", "versions", _versions(found)), ""], said)
    moving = Moving(voice.quiet)
    try:
        moving("testing the arithmetic")
        more = measure_into(found)
        moving.clear()
        if as_text:
            _print(_lines(more), said)
        if not params["quick"] and not found.broken:
            asked = asked_of_doctor(params["device"], params["dtype"], params["mem_limit"])
            with Counting(voice.debug) as counting:
                for profile in posed or (None,):
                    found.outlooks.append(outlook(asked, profile, counting, lambda what: moving(f"looking at {what}")))
                    moving.clear()
                    if as_text:
                        _print(["", *_table(found.outlooks[-1])], said)
            if as_text:
                _print(_to_fetch(found.outlooks[0]), said)
    finally:
        moving.clear()
    if not as_text:
        hand_out(json.dumps(_every(diagnosis_report(found), said)))
    if found.broken:
        more_of_it = f", and {len(found.broken) - 1} more" if len(found.broken) > 1 else ""
        raise SdcliError(said(f"nothing can be drawn here: {found.broken[0]}{more_of_it}"))


def _print(lines: Iterable[str], said: Callable[[str], str]) -> None:
    for line in lines:
        hand_out(said(line))


def _lines(findings: Iterable[Finding]) -> list[str]:
    lines = []
    for finding in findings:
        what = printable(": ".join(filter(None, (finding.value, finding.reason))))
        lines += _wrapped(MARKS[finding.state], finding.name, what)
    return lines


def _wrapped(mark: str, name: str, text: str) -> list[str]:
    indent = " " * (NAME_WIDTH + 2)
    first = f"{mark} {name:<{NAME_WIDTH}}"
    return _fold(text, first, indent)


def _fold(text: str, first: str, rest: str) -> list[str]:
    """Lines no wider than the terminal, but for what cannot be parted."""
    fold = textwrap.TextWrapper(
        _width(), initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return fold.wrap(text)


def _width() -> int:
    return min(WIDE, max(NARROW, shutil.get_terminal_size((100, 24)).columns))


def _versions(found: Diagnosis) -> str:
    good = [f"{version.name} {version.installed}" for version in found.versions if version.state == "tested"]
    return f"tested with {', '.join(good)}" if good else "none of those that sdcli is tested with"


def _table(found: Outlook) -> list[str]:
    """What fits, for people."""
    under = "without a ceiling" if found.limit_bytes is None else f"under {format_size(found.limit_bytes)}"
    about = [f"what fits {under}, in {found.dtype}"]
    if found.posed is not None:
        told = found.posed.machine
        about = [f"what fits on {found.posed.name} {under}, in {found.dtype}"]
        about += _noted(f"ceiling: {found.limit_from}")
        about += _noted(f"speed: {told.flops / 1e9:.0f} GFLOP/s of {told.processor}; {told.speed_from}")
    rows = [HEADER, *map(_cells, found.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  " + "  ".join(row).rstrip() for row in cells]
    notes = []
    if any(row.seconds is not None and row.seconds.bound == "disk" for row in found.rows):
        notes += _noted("* waits for the disk: its weights do not stay in memory from one step to the next")
    for why in dict.fromkeys(row.why for row in found.rows if row.why):
        refs = ", ".join(dict.fromkeys(_name(row) for row in found.rows if row.why == why))
        notes += _noted(f"{refs}: {printable(why)}")
    return [*about, *lines, *notes]


def _to_fetch(found: Outlook) -> list[str]:
    """What those are called on the Hub that are none of this disk's."""
    names = {row.ref: row.hub for row in found.rows if row.hub}
    lines = [f"  {ref.removeprefix(SYNTHETIC):<8} {hub}" for ref, hub in names.items()]
    return ["", "to fetch one of these: sdcli models pull NAME", *lines] if names else []


def _noted(text: str) -> list[str]:
    return _fold(text, "  ", "    ")


def _cells(row: Row) -> tuple[str, ...]:
    ref = _name(row)
    ref = ref if len(ref) <= REF_WIDTH else f"{ref[: REF_WIDTH // 2]}…{ref[1 - REF_WIDTH // 2 :]}"
    if row.why is not None:
        return (ref, "", "?", "", "", "", "", "")
    seconds, least = row.seconds, row.least_limit_bytes
    return (
        ref,
        f"{row.width}x{row.height}",
        "yes" if row.fits else "no",
        "" if least is None else format_size(least),
        "-" if seconds is None else format_duration(seconds.step_s) + ("*" if seconds.bound == "disk" else ""),
        str(row.steps),
        "-" if seconds is None else format_duration(seconds.picture_s),
        format_size(row.download_bytes) if row.hub else "here",
    )


def _name(row: Row) -> str:
    return printable(row.ref).removeprefix(SYNTHETIC)


def _every(value: Any, said: Callable[[str], str]) -> Any:
    """The same with all texts in it as they may be said."""
    if isinstance(value, str):
        return said(value)
    if isinstance(value, dict):
        return {key: _every(one, said) for key, one in value.items()}
    return [_every(one, said) for one in value] if isinstance(value, list) else value
