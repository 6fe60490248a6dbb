"""sdcli samplers: samplers and schedules of noise levels with all their names."""

from __future__ import annotations

import json

import click

from sdcli.cli.say import hand_out
from sdcli.models.samplers import SAMPLERS, SCHEDULES

SCHEMA = "sdcli.samplers/1"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON report instead of a table.")
def command(as_json: bool) -> None:
    """List samplers and schedules of noise levels with their names.

    Names are taken in any case, with or without spaces, dashes and underscores; "DPM++ 2M Karras" is both in one.
    """
    if as_json:
        hand_out(json.dumps(report()))
        return
    rows = [("sampler", "calls", "also", "schedules")]
    rows += [
        (one.name, str(one.calls), ", ".join(one.aliases), ", ".join(_schedules(one.schedules)) or "its own")
        for one in SAMPLERS
    ]
    rows += [("", "", "", ""), ("schedule", "", "also", "noise levels")]
    rows += [(one.name, "", ", ".join(one.aliases), one.about) for one in SCHEDULES]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        hand_out("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def report() -> dict[str, object]:
    """The JSON report."""
    return {
        "schema": SCHEMA,
        "samplers": [
            {
                "name": one.name,
                "aliases": list(one.aliases),
                "calls": one.calls,
                "schedules": [SCHEDULES[0].name, *_schedules(one.schedules)],
            }
            for one in SAMPLERS
        ],
        "schedules": [{"name": one.name, "aliases": list(one.aliases), "about": one.about} for one in SCHEDULES],
    }


def _schedules(names: frozenset[str]) -> list[str]:
    return [schedule.name for schedule in SCHEDULES if schedule.name in names]
