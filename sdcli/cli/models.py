"""sdcli models: what is on this disk, and fetching, describing, checking and removing it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from sdcli.app.asked import Note
from sdcli.app.on_disk import Entry, models_on_disk
from sdcli.app.pull import pull
from sdcli.app.show import Shown, bytes_of, dtypes_of, model_report, show
from sdcli.app.upkeep import removal_of, verify
from sdcli.cli.options import TALK, options
from sdcli.cli.parsed import voice_of
from sdcli.cli.plan import table
from sdcli.cli.progress import AmountLine
from sdcli.cli.say import hand_out
from sdcli.cli.types import ModelRef
from sdcli.domain import Component
from sdcli.errors import BadRequest, SdcliError, echo, printable
from sdcli.families.registry import family_of
from sdcli.units import format_size

SCHEMA = "sdcli.models/1"

JSON = click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of text.")

MODEL = click.argument("model", type=ModelRef())


def _subcommand(name: str, *decorators: Callable[..., Any]) -> Callable[..., Any]:
    """A command of the group, with the options of how much is said."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        return command.command(name)(options(decorators, TALK)(function))

    return decorate


@click.group(invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List, fetch, describe, check and remove models."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@_subcommand("list", JSON)
def _list(**params: Any) -> None:
    """Show the models on this disk: built in, in sdcli's cache and in the Hub's.

    A model that cannot be drawn with is shown with the reason. Models elsewhere are named by their path.
    """
    entries = list(models_on_disk())
    if params["as_json"]:
        hand_out(json.dumps({"schema": SCHEMA, "models": [_entry_table(entry) for entry in entries]}))
        return
    wide = max(len(printable(entry.ref)) for entry in entries)
    for entry in entries:
        what = entry.family or f"no: {entry.why}"
        hand_out(f"{printable(entry.ref):<{wide}}  {format_size(entry.size_bytes):>9}  {what}")


def _entry_table(entry: Entry) -> dict[str, Any]:
    facts = {"ref": entry.ref, "path": str(entry.path), "size_bytes": entry.size_bytes}
    return facts | {"family": entry.family, "draws": entry.why is None, "why": entry.why}


@_subcommand("pull", click.argument("repo"), click.argument("file", required=False))
def _pull(repo: str, file: str | None, **params: Any) -> None:
    """Fetch a model from the Hub: ORG/NAME, or ORG/NAME@COMMIT.

    Only what sdcli reads comes, in half precision where the Hub has it, into the Hub's cache. Of a repository
    of single .safetensors files FILE says which. A pull that was cut goes on where it was.
    """
    voice = voice_of(params)
    line = AmountLine(printable(repo), voice.quiet)

    def tell(note: Note) -> None:
        line.clear()
        voice.tell(note)

    try:
        done = pull(repo, file, tell, line)
    finally:
        line.clear()
    came = f"fetched {format_size(done.fetched_bytes)}, " if done.fetched_bytes else ""
    is_model = done.path.suffix != ".json"
    use = f"draw with --model {done.ref}" if is_model else "models that lack a tokenizer find it there"
    voice.say(f"{came}every byte is as the Hub lists it: {use}")
    hand_out(str(done.path))


@_subcommand("show", MODEL, JSON)
def _show(model: str, **params: Any) -> None:
    """Describe a model: its parts, what it does by itself, and the memory that it would take."""
    voice = voice_of(params)
    shown = show(model, voice.tell, voice.debug)
    if params["as_json"]:
        hand_out(json.dumps(model_report(shown)))
        return
    for line in _lines(shown):
        hand_out(line)


def _lines(shown: Shown) -> list[str]:
    model, result = shown.model, shown.forecast
    report = model_report(shown)
    default = report["defaults"]
    fits = table(result) if result.refusal is None else [f"does not fit here: {result.refusal}"]
    return [
        f"{printable(model.ref)}: {family_of(model).label(model)}, {format_size(report['size_bytes'])} of weights",
        f"  {printable(str(model.path))}",
        f"  digest {model.digest}",
        "",
        *(f"  {part.name:<14} {part.class_name:<24} {_weight(part)}".rstrip() for part in model.parts.values()),
        "",
        f"by itself: {default['width']}x{default['height']}, {default['steps']} steps, guidance"
        f" {default['guidance']:g}, {default['scheduler']}",
        "",
        *fits,
    ]


def _weight(part: Component) -> str:
    """What a part's weights take, and in which types; nothing for a part that has none."""
    return f"{format_size(bytes_of(part)):>9}  {' '.join(dtypes_of(part))}" if part.files else ""


@_subcommand("verify", MODEL)
def _verify(model: str, **params: Any) -> None:
    """Check a model: of one in the Hub's cache every byte, against the digests that the Hub gave.

    Of any other the headers, sizes and configs are looked at.
    """
    voice = voice_of(params)
    line = AmountLine("reading", voice.quiet)
    try:
        checked = verify(model, line)
    finally:
        line.clear()
    if checked.wrong:
        more = f" and {len(checked.wrong) - 1} more" if len(checked.wrong) > 1 else ""
        what = f"{echo(model)} is damaged: {echo(checked.wrong[0])}{more}"
        raise SdcliError(f"{what}; sdcli models pull {printable(model)[:96]} fetches that again")
    if checked.by_digest:
        amount = f"{_files(checked.files)}, {format_size(checked.size_bytes)}"
        hand_out(f"{printable(model)}: {amount}, every byte as listed")
    else:
        hand_out(f"{printable(model)}: well-formed; there is no list of digests to compare with")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


@_subcommand("remove", MODEL, click.option("--yes", is_flag=True, help="Do not ask."))
def _remove(model: str, yes: bool, **params: Any) -> None:
    """Remove a model from the Hub's cache, or a synthetic one, with its prepared copies. Never a folder of yours."""
    voice = voice_of(params)
    removal = removal_of(model)
    if not yes:
        if not sys.stdin.isatty():
            raise BadRequest("nobody can be asked here: give --yes to remove it")
        size = format_size(removal.size_bytes + sum(removal.copies.values()))
        if not click.confirm(f"Remove {printable(str(removal.path))}, {size}?", err=True):
            return
    copies_bytes = removal.carry_out()
    copies = f", and its prepared copies, {format_size(copies_bytes)}" if copies_bytes else ""
    voice.say(f"removed {printable(model)}, {format_size(removal.size_bytes)}{copies}")
