"""sdcli runs: what is unfinished."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from sdcli.app.unfinished import Unfinished, find_folder, find_run, remove, unfinished_runs
from sdcli.cli.options import TALK, options
from sdcli.cli.parsed import voice_of
from sdcli.cli.resume import progress_of
from sdcli.cli.say import hand_out
from sdcli.errors import BadRequest, SdcliError, printable
from sdcli.units import format_size

SCHEMA = "sdcli.runs/1"

PROMPT_SHOWN = 48
"""Characters of a prompt in a list."""

JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")


@click.group(invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, describe and remove runs that were ended before they were done."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(_list, as_json=False)


@command.command("list")
@options((JSON,), TALK)
def _list(as_json: bool, **params: Any) -> None:
    """Show the runs that sdcli resume can go on with, the newest first."""
    voice = voice_of(params)
    runs = list(unfinished_runs(voice.warn))
    if as_json:
        hand_out(json.dumps({"schema": SCHEMA, "runs": [_table(run) for run in runs]}))
        return
    if not runs:
        voice.say("no run is unfinished")
    for run in runs:
        words = printable(run.file.request.prompt[: PROMPT_SHOWN + 1])
        words = words if len(words) <= PROMPT_SHOWN else f"{words[: PROMPT_SHOWN - 1]}…"
        busy = "  under way" if run.in_use else ""
        hand_out(f"{run.id}  {progress_of(run)}  {_age(run.age_s)}  {format_size(run.size_bytes)}  {words}{busy}")


@command.command("show")
@options((click.argument("run", required=False), JSON), TALK)
def _show(run: str | None, as_json: bool, **_: Any) -> None:
    """Describe a run: what it draws, how far it is, where its pictures go. Without RUN the newest one."""
    found = find_run(run)
    if as_json:
        hand_out(json.dumps({"schema": SCHEMA, **_table(found), "request": found.file.table["request"]}))
        return
    request, place = found.file.request, found.file.wanted.destination.seen_from(found.file.wanted.working_folder)
    busy = ", under way" if found.in_use else ""
    names = f"{place.names[0]} … {place.names[-1]}" if len(place.names) > 1 else "".join(place.names)
    to = "stdout" if place.folder is None else printable(os.path.join(place.folder, names) or ".")
    lines = (
        f"{found.id}: {progress_of(found)}, {found.saved} of {found.count} saved, {_age(found.age_s)}{busy}",
        f"  {printable(str(found.folder))}, {format_size(found.size_bytes)}",
        f"  model {printable(found.file.origins.ref)}, {request.width}x{request.height}, {request.steps} steps,"
        f" seed {request.seed}",
        f"  to {to}",
        f"  {printable(request.prompt[:1000])}",
    )
    for line in lines:
        hand_out(line)


@command.command("remove")
@options(
    (
        click.argument("runs", nargs=-1),
        click.option("--all", "everything", is_flag=True, help="All that are unfinished, but those under way."),
    ),
    TALK,
)
def _remove(runs: tuple[str, ...], everything: bool, **params: Any) -> None:
    """Remove runs, with all that they keep: sdcli resume cannot go on with them any more."""
    voice = voice_of(params)
    if everything == bool(runs):
        raise BadRequest("which runs: give RUN, or several, or --all; sdcli runs list shows them")
    folders = [find_folder(name) for name in runs]
    if everything:
        folders = [run.folder for run in unfinished_runs() if not run.in_use]
    failure: SdcliError | None = None
    for folder in folders:
        try:
            voice.say(f"removed {folder.name}, {format_size(remove(folder))}")
        except SdcliError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _table(run: Unfinished) -> dict[str, Any]:
    return {
        "id": run.id,
        "path": str(run.folder),
        "model": run.file.origins.ref,
        "prompt": run.file.request.prompt,
        "count": run.count,
        "saved": run.saved,
        "denoised": run.denoised,
        "picture": run.picture,
        "step": run.step,
        "steps": run.steps,
        "age_s": round(run.age_s),
        "size_bytes": run.size_bytes,
        "in_use": run.in_use,
    }


def _age(seconds: float) -> str:
    """How long ago, in the largest unit that has a whole one."""
    for unit, size_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size_s:
            number = int(seconds // size_s)
            return f"{number} {unit}{'s' * (number > 1)} ago"
    return "just now"
