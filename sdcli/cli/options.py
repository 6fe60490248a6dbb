"""The options of txt2img, img2img, plan and bench: one list, in the order in which --help shows them.

Precedence: option, then environment (SDCLI_NAME), then the user's config file, then the profile, then code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from sdcli import settings
from sdcli.cli import types
from sdcli.errors import BadRequest, echo

COUNT_MOST = 1000
STRENGTH_DEFAULT = 0.6

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _option(*names: str, **attributes: Any) -> Decorator:
    """An option that can come from the environment as well, and whose default --help shows."""
    long = next(name for name in names if name.startswith("--"))
    attributes.setdefault("envvar", "SDCLI_" + long[2:].upper().replace("-", "_"))
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*names, **attributes)


PROMPT = (
    click.argument("prompt", type=types.Text(), required=False),
    _option("--prompt-file", type=types.PromptFile(), help="Read the prompt from a file, - for stdin.", envvar=None),
)


def model_option(default: str) -> tuple[Decorator, ...]:
    """The option that names the model; `default` is for --help, the commands know theirs."""
    about = "demo (built in), a folder in diffusers layout, or synthetic:sd15."
    return (_option("-m", "--model", help=f"{about}  [default: {default}]"),)


JOB = (
    _option(
        "-n", "--negative", type=types.Text(), default="", help="What the picture should not show.", show_default=False
    ),
    _option("-W", "--width", type=types.Side(), help="Pixels, a multiple of 8.  [default: the model's own]"),
    _option("-H", "--height", type=types.Side(), help="Pixels, a multiple of 8.  [default: the model's own]"),
    _option("-s", "--steps", type=types.WholeNumber(1, 1000), default=20, help="Denoising steps, 1 to 1000."),
    _option(
        "-g",
        "--guidance",
        type=types.FiniteNumber(0),
        default=7.5,
        help="How closely to follow the prompt; 1 or less: no guidance.",
    ),
    _option("--seed", type=types.Seed(), default="random", help="0 to 2^64-1, or random."),
)

OUTPUT = (
    _option(
        "-b", "--count", type=types.WholeNumber(1, COUNT_MOST), default=1, help="Pictures; picture i uses seed + i."
    ),
    _option(
        "-o",
        "--output",
        help="A file (.png .jpg .webp), a folder, or - for stdout.  [default: outputs/]",
        envvar="SDCLI_OUTPUT",
    ),
    _option("--force", is_flag=True, help="Replace an existing file."),
)

MACHINE = (
    _option("--device", type=click.Choice(["auto", "mps", "cuda", "cpu"]), default="auto", help="Where to compute."),
    _option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", help="What to compute in."),
)

LIMIT = (
    _option(
        "--mem-limit",
        type=types.Limit(),
        default="auto",
        help="The ceiling: 2GiB, 2800MiB, 2GB (10^9), auto (an app's share, as on iOS) or none.",
    ),
    _option("--profile", help="Pose as a device: its ceiling.  [iphone-6gb, iphone-4gb]"),
    _option("--on-limit", type=click.Choice(["kill"]), default="kill", help="What to do when the ceiling is crossed."),
)

REPORT = (
    _option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of paths."),
    _option("--no-metadata", is_flag=True, help="Leave prompt and settings out of the file."),
)

TALK = (
    click.option("-v", "--verbose", is_flag=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
    click.option("--debug", is_flag=True, help="Show tracebacks and what the libraries print."),
)


def options(*groups: tuple[Decorator, ...]) -> Decorator:
    """Put groups of options on a command."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([option for group in groups for option in group]):
            function = option(function)
        return function

    return decorate


def drawing_options(init: tuple[Decorator, ...] = ()) -> Decorator:
    """What every command that draws takes, or that foretells it; `init` are its options of an init image."""
    return options(PROMPT, init, model_option("demo"), JOB, OUTPUT, MACHINE, LIMIT, REPORT, TALK)


class Command(click.Command):
    """A command whose defaults come from the user's config file, and whose ceiling may come from a profile."""

    allow_extra_args = True  # they are refused below, in words that help

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        known = {p.opts[-1].removeprefix("--").replace("-", "_"): p for p in self.params if isinstance(p, click.Option)}
        config = settings.read_user_config(dict.fromkeys(CONFIGURABLE) | known)
        extra["default_map"] = {
            known[key].name: _default(key, value, known[key]) for key, value in config.items() if key in known
        }
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if rest:
            raise BadRequest(f"one argument too many, {echo(rest[0])}: put the whole prompt in quotes")
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        profile = ctx.params.pop("profile", None)
        if profile is not None:
            chosen = settings.read_profile(profile)
            if ctx.get_parameter_source("mem_limit") is ParameterSource.DEFAULT:
                ctx.params["mem_limit"] = f"{chosen.limit_bytes // 1024}KiB"
        return super().invoke(ctx)


def _default(key: str, value: Any, option: click.Option) -> Any:
    """A setting as click takes it: a plain value, or a list of them for an option that may be repeated."""
    values = value if option.multiple and isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) for one in values):
        raise BadRequest(f"the setting {key} of the config file is {echo(value)}: give a plain value")
    return values if option.multiple else value


CONFIGURABLE = frozenset(
    {"model", "negative", "width", "height", "steps", "guidance", "seed", "strength", "count", "output", "force"}
    | {"device", "dtype", "mem_limit", "profile", "on_limit", "json", "no_metadata"}
)
"""Keys of the config file. A command takes those that it has options for."""


def require_prompt(prompt: str | None, prompt_file: str | None) -> str:
    """The one prompt given. An empty one is allowed: the picture is then unconditional."""
    if prompt is not None and prompt_file is not None:
        raise BadRequest("two prompts: give PROMPT or --prompt-file, not both")
    given = prompt_file if prompt is None else prompt
    if given is None:
        raise BadRequest('no prompt: give PROMPT, as in sdcli txt2img "a red fox"')
    return given


def require_one_product(output: str | None, as_json: bool) -> None:
    """stdout carries one product: the picture or the report."""
    if output == "-" and as_json:
        raise BadRequest("--output - and --json both want stdout: give one of them")
