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
from sdcli.cli.enlarging import HIRES
from sdcli.cli.pairs import CORNER, PIXEL_SIZE
from sdcli.cli.preview import PREVIEW
from sdcli.errors import BadRequest, echo
from sdcli.families.registry import part_options

COUNT_MOST = 1000

ARGUMENTS = "sdcli.arguments"
"""What a context calls the command line's own."""

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _option(*names: str, **attributes: Any) -> Decorator:
    """An option that can come from the environment as well, and whose default --help shows."""
    long = next(name for name in names if name.startswith("--"))
    attributes.setdefault("envvar", "SDCLI_" + long[2:].upper().replace("-", "_"))
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*names, **attributes)


PROMPT = (
    click.argument("prompt", type=types.Text(), required=False),
    click.option("-p", "--prompt", "prompt_option", type=types.Text(), help="The prompt, as an option."),
    _option("--prompt-file", type=types.PromptFile(), help="Read the prompt from a file, - for stdin.", envvar=None),
)


LINES = (
    click.option(
        "--prompts", type=types.PromptLines(), help="A file with a prompt a line, as in: a red fox --seed 7 --steps 9."
    ),
)


def model_option(default: str) -> tuple[Decorator, ...]:
    """The option that names the model; `default` is for --help, the commands know theirs."""
    about = (
        "demo (built in), a .safetensors file, a folder in diffusers layout, ORG/NAME from the Hub, or synthetic:sd15."
    )
    parts = (
        _option(option, type=types.WeightsFile(), help=f"A file or folder with another {option[2:].replace('-', ' ')}.")
        for option in part_options()
    )
    return (
        _option("-m", "--model", type=types.ModelRef(), help=f"{about}  [default: {default}]"),
        *parts,
        _option(
            "--prediction",
            type=click.Choice(["epsilon", "v", "sample"]),
            help="What the denoiser predicts, where the model does not tell or tells wrongly.",
        ),
    )


ADDED = (
    _option(
        "--embedding",
        "embeddings",
        type=types.WeightsFile("embedding_dir"),
        multiple=True,
        help="A file of textual inversion: its name is a word of the prompt. May be repeated.",
        show_default=False,
    ),
    _option("--embedding-dir", type=types.FilePath("folder"), help="Where those lie whose names are in the prompt."),
    _option(
        "--lora",
        "loras",
        type=types.LoraFile(),
        multiple=True,
        help="A file of LoRA that changes the model, and how much: FILE:0.8, else 1. May be repeated.",
        show_default=False,
    ),
    _option(
        "--lora-dir", type=types.FilePath("folder"), help="Where those lie that <lora:name:0.8> in the prompt names."
    ),
)

REFERENCES = (
    _option(
        "--ref",
        "references",
        type=types.FilePath(),
        multiple=True,
        help="A picture that the model is to go by, if it can: what is in it may be in the new one. May be repeated.",
        show_default=False,
    ),
)

JOB = (
    _option(
        "-n",
        "--negative",
        type=types.Text(),
        default="",
        help="What the picture should not show. Also --negative-prompt.",
        show_default=False,
    ),
    _option(
        "--emphasis",
        type=click.Choice(["a1111", "comfy", "none"]),
        default="a1111",
        help="Whose way (words:1.3) weigh; with none brackets are words as well.",
    ),
    _option(
        "--decoder",
        type=click.Choice(["full", "tiny"]),
        default="full",
        help="What makes pictures of latents: the model's own autoencoder, or a tiny one, in less time and memory.",
    ),
    _option("-W", "--width", type=types.Side(), help="Pixels, a multiple of 8.  [default: the model's own]"),
    _option("-H", "--height", type=types.Side(), help="Pixels, a multiple of 8.  [default: the model's own]"),
    _option("--size", type=types.Size(), help="Width and height in one, as in 768x512."),
    _option(
        "-s",
        "--steps",
        type=types.WholeNumber(1, 1000),
        help="Denoising steps, 1 to 1000.  [default: the model's own]",
    ),
    _option(
        "-g",
        "--guidance",
        type=types.FiniteNumber(0),
        help="How closely to follow the prompt; 1 or less: no guidance. Also --cfg-scale.  [default: the model's own]",
    ),
    _option(
        "--sampler",
        type=types.SamplerName(),
        help="A name of A1111, ComfyUI or sd.cpp: sdcli samplers lists them.  [default: the model's own]",
    ),
    _option("--schedule", type=types.ScheduleName(), help="Its noise levels, likewise.  [default: the model's own]"),
    _option(
        "--clip-skip",
        type=types.WholeNumber(1, 64),
        help="Words are taken from the text encoder's last layer at 1, from the one before it at 2, and so on."
        "  [default: the model's own]",
    ),
    _option(
        "--original-size",
        type=PIXEL_SIZE,
        help="SDXL: what size it is told that the picture was, as in 640x480: a small one is drawn as if enlarged."
        "  [default: the picture's]",
    ),
    _option("--crop", type=CORNER, help="SDXL: pixels it is told were cut off left and above, X,Y.  [default: 0,0]"),
    _option("--target-size", type=PIXEL_SIZE, help="SDXL: what size it is told it has.  [default: the picture's]"),
    _option("--seed", type=types.Seed(), default="random", help="0 to 2^64-1, or random, also -1."),
)

OUTPUT = (
    *PREVIEW,
    _option(
        "-b",
        "--count",
        type=types.WholeNumber(1, COUNT_MOST),
        default=1,
        help="Pictures; picture i uses seed + i. Also --batch-count.",
    ),
    _option(
        "-o",
        "--output",
        type=types.FilePath("text"),
        help="A file (.png .jpg .webp), a folder, or - for stdout.  [default: outputs/]",
        envvar="SDCLI_OUTPUT",
    ),
    _option("--force", is_flag=True, help="Replace an existing file."),
)

MACHINE = (
    _option("--device", type=click.Choice(["auto", "mps", "cuda", "cpu"]), default="auto", help="Where to compute."),
    _option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", help="What to compute in."),
    _option("--no-prepare", is_flag=True, help="Make no prepared copy of the denoiser's weights, and use none."),
)

LIMIT = (
    _option(
        "--mem-limit",
        type=types.Limit(),
        default="auto",
        help="The ceiling: 2GiB, 2800MiB, 2GB (10^9), auto (an app's share, as on iOS) or none.",
    ),
    _option("--profile", help="Pose as a device: its ceiling.  [iphone-6gb, iphone-4gb]"),
    _option(
        "--on-limit",
        type=click.Choice(["degrade", "kill"]),
        default="degrade",
        help="When the ceiling is crossed: go on from the last step with a smaller plan, or end.",
    ),
)

REPORT = (
    _option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of paths."),
    _option("--no-metadata", is_flag=True, help="Leave prompt and settings out of the file."),
    _option("--no-cache", is_flag=True, help="Keep no encoding of the prompt for other runs, and use none of theirs."),
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
    return options(
        PROMPT, LINES, init, REFERENCES, model_option("demo"), ADDED, JOB, HIRES, OUTPUT, MACHINE, LIMIT, REPORT, TALK
    )


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
        if ctx.obj is not types.LINE:
            ctx.meta[ARGUMENTS] = given
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            self._explain_dash(ctx, given, isinstance(error, click.NoSuchOption))
            raise
        if rest:
            raise BadRequest(f"one argument too many, {echo(rest[0])}: put the whole prompt in quotes")
        if all(ctx.params.get(name) is None for name in ("prompt", "prompt_option", "prompt_file")):
            self._explain_dash(ctx, given, False)
        return rest

    def _explain_dash(self, ctx: click.Context, args: list[str], unknown: bool) -> None:
        """Raise BadRequest if what was taken for an option seems to be the prompt.

        That is so where nothing else can be the prompt, and the argument has a space, which no option's name has, or
        an option is `unknown`.
        """
        own = [name for p in self.params if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)]
        valued = {name for p in self.params if isinstance(p, click.Option) and not p.is_flag for name in p.opts}
        free = [one for before, one in zip(["", *args], args, strict=False) if before not in valued and one not in own]
        for one in free if all(one.startswith("-") for one in free) and "--" not in free else ():
            if unknown or " " in one.partition("=")[0]:
                shown = echo(one)
                example = f"{ctx.command_path} -- {shown}"
                raise BadRequest(f"{shown} is no option: if it is the prompt, put -- before it, as in {example}")

    def invoke(self, ctx: click.Context) -> Any:
        settle(ctx)
        return super().invoke(ctx)


def settle(ctx: click.Context) -> None:
    """Put what one option says of another into the parameters: a size, a profile."""
    _settle_size(ctx)
    profile = ctx.params.pop("profile", None)
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
    return values if option.multiple else value


CONFIGURABLE = frozenset(
    {"model", "negative", "width", "height", "steps", "guidance", "seed", "strength", "count", "output", "force"}
    | {"sampler", "schedule", "emphasis"}
    | {"original_size", "crop", "target_size", "decoder", "no_prepare"}
    | {"prediction", "clip_skip", *(option[2:].replace("-", "_") for option in part_options())}
    | {"lora", "lora_dir", "embedding", "embedding_dir", "size", "device", "dtype", "mem_limit", "profile", "on_limit"}
    | {"json", "no_metadata", "no_cache"}
)
"""Keys of the config file. A command takes those that it has options for."""
