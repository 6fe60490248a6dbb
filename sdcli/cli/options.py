"""The options of txt2img, img2img, plan and bench: one list, in the order in which --help shows them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from sdcli.cli import types
from sdcli.cli.enlarging import HIRES
from sdcli.cli.pairs import CORNER, PIXEL_SIZE
from sdcli.cli.preview import PREVIEW
from sdcli.cli.prompt_types import PromptFile, PromptLines, Text
from sdcli.families.registry import part_options

COUNT_MOST = 1000

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option(*names: str, **attributes: Any) -> Decorator:
    """An option that can come from the environment as well, and whose default --help shows."""
    long = next(name for name in names if name.startswith("--"))
    attributes.setdefault("envvar", "SDCLI_" + long[2:].upper().replace("-", "_"))
    attributes.setdefault("show_default", attributes.get("default") is not None)
    return click.option(*names, **attributes)


PROMPT = (
    click.argument("prompt", type=Text(), required=False),
    click.option("-p", "--prompt", "prompt_option", type=Text(), help="The prompt, as an option."),
    option("--prompt-file", type=PromptFile(), help="Read the prompt from a file, - for stdin.", envvar=None),
)


LINES = (
    click.option(
        "--prompts", type=PromptLines(), help="A file with a prompt a line, as in: a red fox --seed 7 --steps 9."
    ),
)


def model_option(default: str, several: bool = False) -> tuple[Decorator, ...]:
    """The option that names the model, or `several`; `default` is for --help, the commands know theirs."""
    about = (
        "demo (built in), a .safetensors file, a folder in diffusers layout, ORG/NAME from the Hub, or synthetic:sd15."
    )
    parts = (
        option(name, type=types.WeightsFile(), help=f"A file or folder with another {name[2:].replace('-', ' ')}.")
        for name in part_options()
    )
    more = " May be repeated." if several else ""
    return (
        option("-m", "--model", type=types.ModelRef(), multiple=several, help=f"{about}{more}  [default: {default}]"),
        *parts,
        option(
            "--prediction",
            type=click.Choice(["epsilon", "v", "sample"]),
            help="What the denoiser predicts, where the model does not tell or tells wrongly.",
        ),
    )


ADDED = (
    option(
        "--embedding",
        "embeddings",
        type=types.WeightsFile("embedding_dir"),
        multiple=True,
        help="A file of textual inversion: its name is a word of the prompt. May be repeated.",
        show_default=False,
    ),
    option("--embedding-dir", type=types.FilePath("folder"), help="Where those lie whose names are in the prompt."),
    option(
        "--lora",
        "loras",
        type=types.LoraFile(),
        multiple=True,
        help="A file of LoRA that changes the model, and how much: FILE:0.8, else 1. May be repeated.",
        show_default=False,
    ),
    option(
        "--lora-dir", type=types.FilePath("folder"), help="Where those lie that <lora:name:0.8> in the prompt names."
    ),
)

REFERENCES = (
    option(
        "--ref",
        "references",
        type=types.FilePath(),
        multiple=True,
        help="A picture that the model is to go by, if it can: what is in it may be in the new one. May be repeated.",
        show_default=False,
    ),
)

JOB = (
    option(
        "-n",
        "--negative",
        type=Text(),
        default="",
        help="What the picture should not show. Also --negative-prompt.",
        show_default=False,
    ),
    option(
        "--emphasis",
        type=click.Choice(["a1111", "comfy", "none"]),
        default="a1111",
        help="Whose way (words:1.3) weigh; with none brackets are words as well.",
    ),
    option(
        "--decoder",
        type=click.Choice(["full", "tiny"]),
        default="full",
        help="What makes pictures of latents: the model's own autoencoder, or a tiny one, in less time and memory.",
    ),
    option("-W", "--width", type=types.Side(), help="Pixels, a multiple of 8.  [default: the model's own]"),
    option("-H", "--height", type=types.Side(), help="Pixels, a multiple of 8.  [default: the model's own]"),
    option("--size", type=types.Size(), help="Width and height in one, as in 768x512."),
    option(
        "-s",
        "--steps",
        type=types.WholeNumber(1, 1000),
        help="Denoising steps, 1 to 1000.  [default: the model's own]",
    ),
    option(
        "-g",
        "--guidance",
        type=types.FiniteNumber(0),
        help="How closely to follow the prompt; 1 or less: no guidance. Also --cfg-scale.  [default: the model's own]",
    ),
    option(
        "--sampler",
        type=types.SamplerName(),
        help="A name of A1111, ComfyUI or sd.cpp: sdcli samplers lists them.  [default: the model's own]",
    ),
    option("--schedule", type=types.ScheduleName(), help="Its noise levels, likewise.  [default: the model's own]"),
    option(
        "--clip-skip",
        type=types.WholeNumber(1, 64),
        help="Words are taken from the text encoder's last layer at 1, from the one before it at 2, and so on."
        "  [default: the model's own]",
    ),
    option(
        "--original-size",
        type=PIXEL_SIZE,
        help="SDXL: what size it is told that the picture was, as in 640x480: a small one is drawn as if enlarged."
        "  [default: the picture's]",
    ),
    option("--crop", type=CORNER, help="SDXL: pixels it is told were cut off left and above, X,Y.  [default: 0,0]"),
    option("--target-size", type=PIXEL_SIZE, help="SDXL: what size it is told it has.  [default: the picture's]"),
    option("--seed", type=types.Seed(), default="random", help="0 to 2^64-1, or random, also -1."),
)

FORCE = (option("--force", is_flag=True, help="Replace an existing file."),)

OUTPUT = (
    *PREVIEW,
    option(
        "-b",
        "--count",
        type=types.WholeNumber(1, COUNT_MOST),
        default=1,
        help="Pictures; picture i uses seed + i. Also --batch-count.",
    ),
    option(
        "-o",
        "--output",
        type=types.FilePath("text"),
        help="A file (.png .jpg .webp), a folder, or - for stdout.  [default: outputs/]",
        envvar="SDCLI_OUTPUT",
    ),
    *FORCE,
)

COMPUTING = (
    option("--device", type=click.Choice(["auto", "mps", "cuda", "cpu"]), default="auto", help="Where to compute."),
    option("--dtype", type=click.Choice(["auto", "fp32", "fp16", "bf16"]), default="auto", help="What to compute in."),
)

MACHINE = (
    *COMPUTING,
    option("--no-prepare", is_flag=True, help="Make no prepared copy of the denoiser's weights, and use none."),
    option(
        "--threads",
        type=types.WholeNumber(1, os.cpu_count() or 1),
        help="Of the CPU that compute at once, up to its number of cores.  [default: torch's choice]",
    ),
)

KERNEL_LIMIT = (
    option(
        "--kernel-limit",
        type=types.Bytes(),
        help="Put the worker into a control group of this size, without swap, and tell the group's peak (Linux).",
    ),
)

CEILING = (
    option(
        "--mem-limit",
        type=types.Limit(),
        default="auto",
        help="The ceiling: 2GiB, 2800MiB, 2GB (10^9), auto (an app's share, as on iOS) or none.",
    ),
)

LIMIT = (
    *CEILING,
    *KERNEL_LIMIT,
    option(
        "--profile",
        type=types.ProfileName(),
        help="Pose as a device, iphone-6gb or raspberry-pi-5-4gb say: its ceiling, and for plan its speed. Any other"
        " name lists all.",
    ),
    option(
        "--on-limit",
        type=click.Choice(["degrade", "kill"]),
        default="degrade",
        help="When the ceiling is crossed: go on from the last step with a smaller plan, or end.",
    ),
)

REPORT = (
    option("--json", "as_json", is_flag=True, help="A JSON report on stdout instead of paths."),
    option("--no-metadata", is_flag=True, help="Leave prompt and settings out of the file."),
    option("--no-cache", is_flag=True, help="Keep no encoding of the prompt for other runs, and use none of theirs."),
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


def drawing_options(init: tuple[Decorator, ...] = (), pages: tuple[Decorator, ...] = ()) -> Decorator:
    """What every command that draws takes, or that foretells it; `init` are its options of an init image."""
    job = (PROMPT, LINES, init, REFERENCES, model_option("demo"), ADDED, JOB, HIRES)
    return options(*job, OUTPUT, MACHINE, LIMIT, REPORT, pages, TALK)
