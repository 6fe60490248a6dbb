"""From click's parameters to typed values: what is asked for, how the product is wanted, how much is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.app.asked import Asked
from sdcli.cli.say import Voice
from sdcli.errors import BadRequest
from sdcli.families.registry import part_options

Params = Mapping[str, Any]
"""Of a command, by name, as click has checked them."""

_ASKED = {field.name for field in dataclasses.fields(Asked)} - {"prompt"}


@dataclass(frozen=True, slots=True)
class Product:
    """How what was drawn is wanted: `output` is a file, a folder, `-` for stdout, or None for the folder outputs."""

    output: str | None
    force: bool
    as_json: bool
    no_metadata: bool
    preview: str | None = None
    """`terminal`, or a file for previews; None is none."""
    receipt: bool = False
    """Whether the picture says what it took."""


WAYS = ("prompt", "prompt_option", "prompt_file")
"""To give a prompt."""


def asked_of(params: Params) -> Asked:
    """What is asked for. Raises BadRequest unless there is one prompt."""
    prompt = require_prompt(*(params[way] for way in WAYS))
    said = {name: value for name, value in params.items() if name in _ASKED and value is not None}
    if params.get("preview") is None:
        said.pop("preview_every", None)
    if "init" not in said:
        said.pop("strength", None)
    named = {part: params.get(option[2:].replace("-", "_")) for option, part in part_options().items()}
    return Asked(prompt, parts={part: where for part, where in named.items() if where is not None}, **said)


def product_of(params: Params) -> Product:
    """How it is wanted. Raises BadRequest for two products on stdout, the picture and the report."""
    product = Product(
        output=params["output"],
        force=params["force"],
        as_json=params["as_json"],
        no_metadata=params["no_metadata"],
        preview=params["preview"],
        receipt=params["receipt"],
    )
    if product.output == "-" and product.as_json:
        raise BadRequest("--output - and --json both want stdout: give one of them")
    if product.receipt and product.no_metadata:
        raise BadRequest("--receipt is metadata, and --no-metadata leaves all of that out: give one of them")
    return product


def voice_of(params: Params) -> Voice:
    """How much is said."""
    return Voice(params["quiet"], params["verbose"], params["debug"])


def require_prompt(*ways: str | None) -> str:
    """The one prompt given in any of the `ways`. An empty one is allowed: the picture is then unconditional."""
    given = [prompt for prompt in ways if prompt is not None]
    if len(given) > 1:
        raise BadRequest("two prompts: give PROMPT, --prompt or --prompt-file, and only one of them")
    if not given:
        raise BadRequest('no prompt: give PROMPT, as in sdcli txt2img "a red fox"')
    return given[0]
