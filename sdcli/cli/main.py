"""The command line: the commands by name, and the one boundary where an error becomes a line and an exit code."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from sdcli import __version__, interrupts
from sdcli.cli.say import say
from sdcli.errors import BadRequest, Interrupted, SdcliError, echo, printable, shortage

COMMANDS = {
    "txt2img": "Draw a picture from words.",
    "img2img": "Edit a picture with words.",
    "again": "Draw a picture again from what it says of itself.",
    "info": "Print what a picture says of how it was made.",
    "plan": "Say whether a picture fits, how, and why; load no weights.",
    "resume": "Go on with a run that was ended before it was done.",
    "runs": "List, describe and remove runs that were ended.",
    "bench": "Run one job under several memory ceilings and compare.",
    "models": "List, fetch, describe, check and remove models.",
    "samplers": "List samplers and schedules of noise levels with their names.",
    "doctor": "Say what this machine is, whether it computes right, and which models fit, in what time.",
    "completion": "Print a script that makes a shell complete commands, options and models.",
}
"""Names and first lines of help: a command's module is imported when it is called, so that --help is quick."""

MESSAGE_LIMIT = 600
USAGE_LIMIT = 200
"""Click echoes arguments whole; ours are cut where they are echoed."""

BROKEN_PIPE_EXIT = 141

COLLECT_EVERY = 100_000
"""New objects until cycles are looked for: more than a command imports, which stay and need not be gone through."""

COMMAND_LINE = "sdcli.command_line"
"""What a context calls the whole command line, from the command's name on."""

COMPLETING = "_SDCLI_COMPLETE"
"""Set where a shell asks what a command line may go on with, instead of running it."""


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        ctx.meta[COMMAND_LINE] = list(args)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"sdcli.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="sdcli %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Stable Diffusion under a memory ceiling that you set: predicted before it starts, kept while it runs.

    Try: sdcli txt2img "a fox on a blue background"
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    gc.set_threshold(COLLECT_EVERY, 10, 10)
    _take_utf_8()
    _open_standard_streams()
    interrupts.install()
    sys.exit(_flush(run(sys.argv[1:])))


def run(argv: list[str]) -> int:
    """One command line to its exit code. Every failure is one line on stderr."""
    try:
        result: Any = cli.main(_as_text(argv), prog_name="sdcli", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit) as end:  # click turns a broken pipe into an exit
        if isinstance(end, SystemExit) and COMPLETING in os.environ:  # and a shell's question
            return end.code if isinstance(end.code, int) else 0
        return _quiet_broken_pipe()
    except (Exception, Interrupted) as error:  # the one boundary: a person gets a line, a developer --debug
        if "--debug" in argv:
            say("".join(traceback.format_exception(error)), end="")
        code, message = _code_and_message(error)
        say(f"Error: {_one_line(message, MESSAGE_LIMIT)}")
        return code


def _code_and_message(error: BaseException) -> tuple[int, str]:  # noqa: PLR0911  a table
    match error:
        case click.ClickException():
            return 2, _usage_message(error)
        case SdcliError() | Interrupted():
            return error.exit_code, str(error)
        case click.Abort():
            return 130, "interrupted"
        case MemoryError():
            return 1, "there is no memory left for this: end other programs, or ask for a smaller picture"
        case OSError() | RuntimeError() if lack := shortage(str(error)):
            return 1, lack
        case OSError():
            return 1, f"the system refused something: {echo(error, 160)}; --debug shows where"
    return 1, f"{type(error).__name__}: {echo(error, 160)}; this is a bug, --debug shows where"


def _usage_message(error: click.ClickException) -> str:
    """Click's words in one line. What to do is there already where a type of ours refused a value."""
    line = _one_line(error.format_message(), USAGE_LIMIT).rstrip(".")
    if isinstance(error, click.BadParameter) or not isinstance(error, click.UsageError) or error.ctx is None:
        return line
    return f"{line}; see {error.ctx.command_path} --help"


def _one_line(message: str, limit: int) -> str:
    """The message in one line of printable characters, cut in its middle."""
    line = " ".join(printable(part) for part in message.split())
    return line if len(line) <= limit else f"{line[: limit // 2]}…{line[1 - limit + limit // 2 :]}"


def _as_text(argv: list[str]) -> list[str]:
    """The arguments as UTF-8, also where the locale made Python read them as something else."""
    text = []
    for number, argument in enumerate(argv, start=1):
        try:
            text.append(os.fsencode(argument).decode("utf-8"))
        except UnicodeError:
            raise BadRequest(f"argument {number} is not valid UTF-8: check the terminal's encoding") from None
    return text


def _take_utf_8() -> None:
    """Start anew in UTF-8 mode where the locale would have file names in another encoding, which lacks letters.

    A name is written with the bytes that were typed. Costs the start of an interpreter, in such a locale alone.
    """
    foreign = sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode
    if foreign and os.name == "posix" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  this program itself


def _open_standard_streams() -> None:
    """Point closed standard streams at nothing, or a file opened later would take their place and get our words."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115  open to the end


def _flush(code: int) -> int:
    """Say all that is unsaid, or drop it: at Python's own exit it would be a traceback and code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and code == 0:
                code = BROKEN_PIPE_EXIT if isinstance(error, BrokenPipeError) else 1
    return code


def _quiet_broken_pipe() -> int:
    """Whoever read our output has gone: no traceback, also not from Python's own flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE_EXIT
