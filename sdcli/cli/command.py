"""A command: where its options' values come from, and what is said of a command line that it cannot take.

Precedence: option, then environment (SDCLI_NAME), then the user's config file, then the profile, then code.
"""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from sdcli import settings
from sdcli.cli.prompt_types import LINE
from sdcli.errors import BadRequest, echo
from sdcli.families.registry import part_options

ARGUMENTS = "sdcli.arguments"
"""What a context calls the command line's own."""

ALIASES = {"negative-prompt": "negative", "cfg-scale": "guidance", "init-img": "init", "batch-count": "count"}
"""Options by the names that other programs give them."""


class Command(click.Command):
    """A command whose defaults come from the user's config file, and whose ceiling may come from a profile."""

    allow_extra_args = True  # they are refused below, in words that help

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.context_settings["token_normalize_func"] = lambda name: ALIASES.get(name, name)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        known = {p.opts[-1].removeprefix("--").replace("-", "_"): p for p in self.params if isinstance(p, click.Option)}
        known |= {alias.replace("-", "_"): known[name] for alias, name in ALIASES.items() if name in known}
        for name in ("prompt", "prompts"):  # what is drawn is no habit
            known.pop(name, None)
        aliases = (alias.replace("-", "_") for alias in ALIASES)
        config = settings.read_user_config(dict.fromkeys((*CONFIGURABLE, *aliases)) | known)
        extra["default_map"] = {
            known[key].name: _default(key, value, known[key]) for key, value in config.items() if key in known
        }
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        if ctx.obj is not LINE:
            ctx.meta[ARGUMENTS] = given
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            self._explain_dash(ctx, given, isinstance(error, click.NoSuchOption))
            raise
        if rest:
            how = "put the whole prompt in quotes" if self._draws else f"see {ctx.command_path} --help"
            raise BadRequest(f"one argument too many, {echo(rest[0])}: {how}")
        if all(ctx.params.get(name) is None for name in ("prompt", "prompt_option", "prompt_file")):
            self._explain_dash(ctx, given, False)
        return rest

    def _explain_dash(self, ctx: click.Context, args: list[str], unknown: bool) -> None:
        """Raise BadRequest if what was taken for an option seems to be the prompt.

        That is so where nothing else can be the prompt, and the argument has a space, which no option's name has, or
        an option is `unknown`.
        """
        if not self._draws:
            return
        own = [name for p in self.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)]
        valued = {name for p in self.params if isinstance(p, click.Option) and not p.is_flag for name in p.opts}
        free = [one for before, one in zip(["", *args], args, strict=False) if before not in valued and one not in own]
        for one in free if all(one.startswith("-") for one in free) and "--" not in free else ():
            if unknown or " " in one.partition("=")[0]:
                shown = echo(one)
                example = f"{ctx.command_path} -- {shown}"
                raise BadRequest(f"{shown} is no option: if it is the prompt, put -- before it, as in {example}")

    @property
    def _draws(self) -> bool:
        """Whether it takes a prompt."""
        return any(param.name == "prompt" for param in self.params)

    def invoke(self, ctx: click.Context) -> Any:
        settle(ctx)
        return super().invoke(ctx)


def settle(ctx: click.Context) -> None:
    """Put what one option says of another into the parameters: a size, a profile."""
    _settle_size(ctx)
    profile = ctx.params.get("profile")
    if profile is not None:
        chosen = settings.read_profile(profile)
        if ctx.get_parameter_source("mem_limit") is ParameterSource.DEFAULT:
            ctx.params["mem_limit"] = f"{chosen.limit_bytes // 1024}KiB"


def _settle_size(ctx: click.Context) -> None:
    """Width and height from --size, where that was said with more weight, by the order of precedence, than they."""
    size, said = ctx.params.pop("size", None), list(PRECEDENCE).index
    of_size = ctx.get_parameter_source("size")
    for name, side in zip(("width", "height"), size or (), strict=False):
        of_side = ctx.get_parameter_source(name)
        if ctx.params[name] is not None and of_side is of_size:
            raise BadRequest(f"two sizes: give --size or --{name}, not both")
        if of_side is None or of_size is None or said(of_size) < said(of_side):
            ctx.params[name] = side


PRECEDENCE = (
    ParameterSource.COMMANDLINE,
    ParameterSource.ENVIRONMENT,
    ParameterSource.DEFAULT_MAP,
    ParameterSource.DEFAULT,
)


def _default(key: str, value: Any, option: click.Option) -> Any:
    """A setting as click takes it: a plain value, or a list of them for an option that may be repeated."""
    values = value if option.multiple and isinstance(value, list) else [value]
    if not all(isinstance(one, (str, int, float)) for one in values):
        raise BadRequest(f"the setting {key} of the config file is {echo(value)}: give a plain value")
    if option.is_flag and not isinstance(value, str) and value not in (0, 1):
        raise BadRequest(f"the setting {key} of the config file is {echo(value)}: give true or false")
    return values if option.multiple else value


CONFIGURABLE = frozenset(
    {"model", "negative", "width", "height", "steps", "guidance", "seed", "strength", "count", "output", "force"}
    | {"sampler", "schedule", "emphasis"}
    | {"original_size", "crop", "target_size", "decoder", "no_prepare"}
    | {"prediction", "clip_skip", *(option[2:].replace("-", "_") for option in part_options())}
    | {
        "lora",
        "lora_dir",
        "embedding",
        "embedding_dir",
        "size",
        "device",
        "dtype",
        "threads",
        "mem_limit",
        "kernel_limit",
        "profile",
        "on_limit",
        "json",
        "no_metadata",
        "no_cache",
    }
)
"""Keys of the config file. A command takes those that it has options for."""
