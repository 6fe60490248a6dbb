"""--prompts FILE: a job for each line, with the options of the command line and after them those of the line."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sdcli.cli import types
from sdcli.cli.command import ARGUMENTS, settle
from sdcli.cli.parsed import WAYS, Params, require_prompt
from sdcli.cli.prompt_types import LINE
from sdcli.cli.say import Voice
from sdcli.errors import BadRequest, echo, printable

_OPTIONS = re.compile(r"(?:^|\s)(?=--[A-Za-z])")
"""Where they begin."""


def jobs(params: Params, voice: Voice) -> Iterator[Params]:
    """The parameters of each job: of the command line itself, or of each line of --prompts.

    All lines are checked first. Raises BadRequest, which names the line, for what cannot be meant.
    """
    lines = params["prompts"]
    if not lines:
        yield params
        return
    if any(params[way] is not None for way in WAYS):
        raise BadRequest("two prompts: give PROMPT, --prompt, --prompt-file or --prompts, and only one of them")
    ctx = click.get_current_context()
    parsed = [_parsed(ctx, at, line) for at, line in lines]
    _require_folders([one["output"] for one in parsed])
    for (at, _), one in zip(lines, parsed, strict=True):
        if any(one.get(name) != params.get(name) for name in ("report", "plot")):
            raise BadRequest(f"line {at} of --prompts: --report and --plot are of all lines: give them outside")
    for number, (at, line) in enumerate(lines, start=1):
        voice.say(f"prompt {number} of {len(lines)}: {echo(line)}")
        yield _parsed(ctx, at, line)


def _parsed(ctx: click.Context, at: int, line: str) -> dict[str, Any]:
    """The parameters of a line: a random seed is another one each time."""
    begin = _OPTIONS.search(line)
    prompt, rest = (line, "") if begin is None else (line[: begin.start()].strip(), line[begin.end() :])
    try:
        own = shlex.split(rest)
    except ValueError as error:
        raise BadRequest(f"line {at} of --prompts: {error}; put quotes in pairs") from error
    if "--" in own:
        raise BadRequest(f"line {at} of --prompts: -- is no option; write the prompt first")
    _require_of_a_line(ctx, at, own)
    given = [*ctx.meta[ARGUMENTS], *_sides(ctx, own), *(["--", prompt] if prompt else [])]
    try:
        with ctx.command.make_context(ctx.info_name, given, ctx.parent, obj=LINE) as of_line:
            settle(of_line)
            ways = [of_line.params[way] for way in WAYS]
            if all(way is None for way in ways):
                raise BadRequest("no prompt: write it first, then options")
            require_prompt(*ways)
            return of_line.params
    except (click.UsageError, BadRequest) as error:
        said = error.format_message() if isinstance(error, click.UsageError) else str(error)
        raise BadRequest(f"line {at} of --prompts: {printable(said)}") from error


def _require_of_a_line(ctx: click.Context, at: int, own: list[str]) -> None:
    """Raise BadRequest where an option lacks its value, which what follows would be taken for, or is of no line."""
    try:
        _, _, options = ctx.command.make_parser(ctx).parse_args([*own])
    except click.UsageError as error:
        raise BadRequest(f"line {at} of --prompts: {printable(error.format_message())}") from error
    for name in {"--help", "--prompts"}.intersection(name for option in options for name in option.opts):
        raise BadRequest(f"line {at} of --prompts: {name} is none of a line's options: leave it out")


def _sides(ctx: click.Context, own: list[str]) -> list[str]:
    """A line's options, with --size as both sides where the command line has a side: the line has the last word."""
    by_side = any(ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ("width", "height"))
    if "--size" not in own[:-1] or not by_side:
        return own
    at = own.index("--size")
    width, height = types.Size().convert(own[at + 1], None, ctx)
    return [*own[:at], "--width", str(width), "--height", str(height), *own[at + 2 :]]


def _require_folders(outputs: list[str | None]) -> None:
    """Raise BadRequest where several prompts would go to one file."""
    for output in {output for output in outputs if output is not None}:
        is_folder = output.endswith(("/", os.sep)) or Path(output).is_dir()
        if outputs.count(output) > 1 and not is_folder:
            raise BadRequest(f"--output {echo(output)} is one place for {outputs.count(output)} prompts: give a folder")
