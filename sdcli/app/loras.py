"""LoRAs that a person asks for: files by name, and `<lora:name:0.8>` in the prompt for one that lies in a folder."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sdcli.app.asked import Asked
from sdcli.errors import BadRequest, SdcliError, echo

SUFFIX = ".safetensors"

_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)

FEW = 3
"""Names that a message shows at most."""


def loras_of(asked: Asked) -> tuple[tuple[str, float], ...]:
    """All files that are asked for, and how much of each: those of options first.

    Raises BadRequest for a tag that is none, or that names nothing in the folder.
    """
    tagged = [_parsed(tag[1]) for tag in _TAG.finditer(asked.prompt)]
    if tagged and asked.lora_dir is None:
        raise BadRequest(f"the prompt asks for the LoRA {echo(tagged[0][0])}: give its folder as --lora-dir")
    named = _named(Path(asked.lora_dir)) if tagged and asked.lora_dir is not None else {}
    return *asked.loras, *((str(_found(name, named, asked.lora_dir)), weight) for name, weight in tagged)


def has_tags(text: str) -> bool:
    """Whether a text asks for a LoRA."""
    return _TAG.search(text) is not None


def without_tags(prompt: str) -> str:
    """The words of a prompt."""
    return _TAG.sub("", prompt).strip() if has_tags(prompt) else prompt


def _parsed(tag: str) -> tuple[str, float]:
    """Name and weight of what is between `<lora:` and `>`; without a weight it is 1."""
    name, colon, weight = tag.partition(":")
    number = weight_of(weight) if colon else 1.0
    if not name.strip() or number is None:
        raise BadRequest(f"{echo(f'<lora:{tag}>')} in the prompt is no LoRA: write <lora:name:0.8>")
    return name.strip(), number


def weight_of(text: str) -> float | None:
    """A finite number; None for anything else."""
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text.strip(), re.ASCII):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def _named(folder: Path) -> dict[str, list[Path]]:
    """The files in a folder and in those inside it: by their names, and by their paths, without the suffix."""
    named: dict[str, list[Path]] = {}
    for path in _files(folder):
        for name in {path.stem, path.relative_to(folder).with_suffix("").as_posix()}:
            named.setdefault(name, []).append(path)
    return named


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise SdcliError(f"cannot read --lora-dir {echo(folder)}: {error.strerror}; check the path") from error

    for home, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        yield from (Path(home, name) for name in sorted(names) if name.lower().endswith(SUFFIX))


def _found(name: str, named: dict[str, list[Path]], folder: str | None) -> Path:
    paths = named.get(name.removesuffix(SUFFIX), [])
    if len(paths) > 1:
        raise BadRequest(f"there are {len(paths)} LoRAs {echo(name)} in {echo(folder)}: write {_with_folder(paths)}")
    if paths:
        return paths[0]
    import difflib  # here, because it is seldom needed

    nearest = difflib.get_close_matches(name, named, 1, 0.5)
    hint = f"the nearest is {echo(nearest[0])}" if nearest else _some(named)
    raise BadRequest(f"no LoRA {echo(name)} in {echo(folder)}: {hint}")


def _with_folder(paths: list[Path]) -> str:
    return " or ".join(echo(f"{path.parent.name}/{path.stem}") for path in paths[:FEW])


def _some(named: dict[str, list[Path]]) -> str:
    names = sorted(named)
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return f"there are {', '.join(map(echo, names[:FEW]))}{more}" if names else f"it has no {SUFFIX} files"
