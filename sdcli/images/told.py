"""What a picture says of how it was made: ours exactly, A1111's and stable-diffusion.cpp's text, ComfyUI's graph.

Whatever stands there is text that nobody vouches for: it is read, not believed. Values are texts as options take them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdcli.errors import SdcliError, echo
from sdcli.images.metadata import SCHEMA
from sdcli.images.texts import texts_in

Writer = Literal["sdcli", "a1111", "comfyui"]


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a picture's making. `values` are by the names of options, with underscores."""

    writer: Writer
    format: str
    width: int
    """Of the file."""
    height: int
    values: dict[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    """Our own JSON, of a picture of ours."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """What stands there besides."""


def read_told(path: Path) -> Told:
    """What a picture says. Raises SdcliError for one that says nothing of its making."""
    texts = texts_in(path)
    about = texts.format, texts.width, texts.height
    ours = _object(texts.by_name.get("sdcli", ""))
    if ours.get("schema") == SCHEMA:
        return Told("sdcli", *about, record=ours)
    parameters = texts.by_name.get("parameters", "")
    if parameters:
        values, unknown = _parameters(parameters)
        if values:
            return Told("a1111", *about, values, unknown=unknown)
    graph = _object(texts.by_name.get("prompt", ""))
    if graph:
        values, unknown = _graph(graph)
        if values:
            return Told("comfyui", *about, values, unknown=unknown)
    raise SdcliError(
        f"{echo(path)} does not say how it was made: it has no text of sdcli, A1111, sd.cpp or ComfyUI, or has lost it"
    )


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_NAMES = {
    "Steps": "steps",
    "Sampler": "sampler",
    "Schedule type": "schedule",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Size": "size",
    "Model": "model",
    "Clip skip": "clip_skip",
    "Denoising strength": "strength",
    "Hires upscale": "hires",
    "Hires resize": "hires",
    "Hires steps": "hires_steps",
    "Hires upscaler": "hires_upscaler",
}
"""A1111's names of what options say."""

_OF_NO_EFFECT = {"Version", "Model hash", "Lora hashes", "TI hashes"}


def _parameters(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """A1111's text: prompt, negative prompt, a last line of settings (modules/infotext_utils.py)."""
    lines = text.strip().split("\n")
    settings = dict(_pairs(lines[-1])) if re.match(r"Steps: ?[0-9]", lines[-1]) else {}
    if not settings:
        return {}, {}
    words = "\n".join(lines[:-1])
    at = 0 if words.startswith("Negative prompt:") else words.find("\nNegative prompt:")
    prompt, negative = (words, "") if at < 0 else (words[:at], words[at:].partition(":")[2])
    values = {"prompt": prompt.strip(), "negative": negative.strip()}
    values |= {option: settings[key] for key, option in _NAMES.items() if key in settings}
    return values, {key: value for key, value in settings.items() if key not in _NAMES and key not in _OF_NO_EFFECT}


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """`Key: value, …`, where a value with commas is written as JSON has texts."""
    at, decoder, quoted = 0, json.JSONDecoder(strict=False), True
    while (colon := line.find(":", at)) >= 0:
        key, begin = line[at:colon].strip(" ,"), colon + 1
        while line[begin : begin + 1] == " ":
            begin += 1
        end = -1
        if quoted and line[begin : begin + 1] == '"':
            try:
                value, end = decoder.raw_decode(line, begin)
            except ValueError:
                quoted = False
        if end < 0:
            end = line.find(",", begin)
            end = len(line) if end < 0 else end
            value = line[begin:end].strip()
        yield key, str(value)
        at = end + 1


_INPUTS = {
    "seed": "seed",
    "noise_seed": "seed",
    "steps": "steps",
    "cfg": "guidance",
    "sampler_name": "sampler",
    "scheduler": "schedule",
}
"""ComfyUI's names of what options say, of its node KSampler."""

_SAMPLING = re.compile(r"KSampler(?!Select)|SamplerCustom")
_PIECES = ("noise", "guider", "sampler", "sigmas")
"""Inputs of a sampler that is of several nodes: what those say is as if it said so."""

_WORDS = ("text", "text_g", "value", "string")
"""Inputs of nodes that have words."""

_HOPS = 32
"""Nodes between one that samples and what it needs."""


Nodes = Mapping[str, Mapping[str, Any]]
"""ComfyUI's, by their numbers: each with a class and inputs, which are values or links to other nodes."""


def _graph(graph: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What the first node that samples says, and the nodes that it gets words, size and model from."""
    nodes = {
        key: node for key, node in graph.items() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    sampling = [node for node in nodes.values() if _SAMPLING.match(str(node.get("class_type")))]
    if not sampling:
        return {}, {}
    first, *more = sampling
    seen = {str(first.get("class_type"))}
    inputs = dict(first["inputs"])
    for name in _PIECES:
        for node in _behind(nodes, inputs.get(name)):
            inputs = {**node["inputs"], **inputs}
            seen.add(str(node.get("class_type")))
    inputs.setdefault("positive", inputs.get("conditioning"))
    values, unused = _plain_values(nodes, inputs, seen), _words(nodes, inputs, seen)
    values |= {option: unused.pop(option) for option in ("prompt", "negative") if option in unused}
    for node in _behind(nodes, inputs.get("model"), "model"):
        named = next(
            (v for k, v in node["inputs"].items() if k.endswith(("ckpt_name", "net_name")) and _is_text(v)), None
        )
        if named is not None:
            values["model"] = named
            seen.add(str(node.get("class_type")))
    for node in _behind(nodes, inputs.get("latent_image"), "samples", "latent"):
        sides = node["inputs"].get("width"), node["inputs"].get("height")
        if all(isinstance(side, int) for side in sides):
            values["size"] = f"{sides[0]}x{sides[1]}"
            seen.add(str(node.get("class_type")))
    if inputs.get("denoise", 1) != 1:
        values["strength"] = str(inputs["denoise"])
    idle = {"VAEDecode", "SaveImage", "PreviewImage"}
    others = sorted({str(node.get("class_type")) for node in nodes.values()} - seen - idle)
    others += [f"another {node.get('class_type')}" for node in more]
    return values, {**dict.fromkeys(others, "a node"), **unused}


def _behind(nodes: Nodes, link: object, *through: str) -> Iterator[Mapping[str, Any]]:
    """The node that a link leads to, and those behind its own inputs of these names."""
    for _ in range(_HOPS):
        node = nodes.get(str(link[0])) if isinstance(link, list) and link else None
        if node is None:
            return
        yield node
        link = next((node["inputs"][name] for name in through if isinstance(node["inputs"].get(name), list)), None)


def _plain_values(nodes: Nodes, inputs: Mapping[str, Any], seen: set[str]) -> dict[str, str]:
    """Numbers and names, of the sampler's own or of the node that an input is linked to."""
    values = {}
    for key, option in _INPUTS.items():
        value = inputs.get(key)
        for node in _behind(nodes, value):
            value = node["inputs"].get("value", node["inputs"].get(key))
            seen.add(str(node.get("class_type")))
        if isinstance(value, int | float | str):
            values[option] = str(value)
    return values


def _words(nodes: Nodes, inputs: Mapping[str, Any], seen: set[str]) -> dict[str, str]:
    """Both prompts, and by their names in the graph other words that go with them."""
    values = {}
    for name, option in (("positive", "prompt"), ("negative", "negative")):
        for node in _behind(nodes, inputs.get(name), "conditioning", "text"):
            if node.get("class_type") == "ConditioningZeroOut":  # of the words behind it nothing is left
                break
            text = next((node["inputs"][k] for k in _WORDS if _is_text(node["inputs"].get(k))), None)
            if text is not None:
                values[option] = text
                if _is_text(other := node["inputs"].get("text_l", text)) and other != text:
                    values["text_l"] = other
                seen.add(str(node.get("class_type")))
                break
    return values


def _is_text(value: object) -> bool:
    return isinstance(value, str)
