"""sdcli resume [RUN]: go on with a run that was ended before it was done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from sdcli.app.record import Wanted
from sdcli.app.resume import reopen, require_place
from sdcli.app.unfinished import Unfinished, find_run
from sdcli.cli import types
from sdcli.cli.draw import carry_out, working_folder
from sdcli.cli.options import TALK, options
from sdcli.cli.pages import PAGES, Pages, pages_of
from sdcli.cli.parsed import Params, voice_of
from sdcli.errors import BadRequest

GIVEN_ANEW = (
    click.option("-o", "--output", type=types.FilePath("text"), help="Another place, as for txt2img."),
    click.option("--force", is_flag=True, help="Replace an existing file."),
    click.option("--mem-limit", type=types.Limit(), help="Another ceiling."),
    click.option("--on-limit", type=click.Choice(["degrade", "kill"]), help="What to do when the ceiling is crossed."),
    click.option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of paths."),
    click.option("--anyway", is_flag=True, help="Go on where other bits may come of it."),
)


@click.command()
@click.argument("run", required=False)
@options(GIVEN_ANEW, PAGES, TALK)
def command(run: str | None, **params: Any) -> None:
    """Go on with a run that was ended before it was done: the newest one, or RUN.

    Whatever ended it, Ctrl-C, a full disk, a kill or a loss of power, it goes on from its last step, and the pictures
    have the bits that they would have had. RUN is its id, or the beginning of it: sdcli runs lists them. What is given
    here goes before what the run had.
    """
    with pages_of(params, voice_of(params)) as pages:
        _resume(run, params, pages)


def _resume(run: str | None, params: Params, pages: Pages) -> None:
    voice, found = voice_of(params), find_run(run)
    with_others = {name: params[name] for name in ("mem_limit", "on_limit", "anyway")}
    record = reopen(found, voice.tell, debug=voice.debug, **with_others)
    try:
        wanted = _wanted(found, params)
        if wanted.destination.folder is None and params["as_json"]:
            raise BadRequest("--json and a picture both want stdout: give --output a file")
        pages.require_apart(wanted.destination)
        require_place(record, wanted.destination)
    except BaseException:
        record.folder.close(finished=False)
        raise
    voice.say(f"going on with {found.id}: {progress_of(found)}")
    carry_out(record, wanted, params["as_json"], voice, pages)


def progress_of(run: Unfinished) -> str:
    """How far it is."""
    if run.denoised == run.count:
        return "all pictures are denoised" if run.saved < run.count else "all pictures are saved"
    step = "" if run.step is None else f", step {run.step} of {run.steps}"
    return f"picture {run.picture} of {run.count}{step}"


def _wanted(run: Unfinished, params: Params) -> Wanted:
    """How the pictures are wanted now."""
    before = run.file.wanted
    if params["output"] is None:
        destination = before.destination.seen_from(before.working_folder)
        return replace(before, destination=replace(destination, force=destination.force or params["force"]))
    from sdcli.images.write import place_of  # here, because Pillow takes a third of the time that --help takes

    destination = place_of(params["output"], run.count, params["force"])
    return replace(before, destination=destination, working_folder=working_folder())
