"""Whether a model's files are still those that were opened: what is drawn is never from two models.

A file's stamp is its inode, size and times (models/header.py). Weights have that of when their header was read, configs
and the tokenizer's files that of when a model is first asked for its stamps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from sdcli.domain import Component, Model
from sdcli.errors import SdcliError, echo
from sdcli.models.header import stamp_of

Stamps = Mapping[str, str]
"""From `component/file` to the file's stamp."""

GONE = "gone"


@lru_cache(maxsize=8)
def stamps_of(model: Model) -> Stamps:
    """Of all files that the model is made of, the first time that it is asked."""
    stamps: dict[str, str] = {}
    for part in model.parts.values():
        stamps |= _now(part) | {f"{part.name}/{file.path.name}": file.stamp for file in part.files}
        stamps |= {name: stamp for name, (_, stamp) in _added(part).items()}
    return stamps


def require_same(opened: Stamps, now: Stamps) -> None:
    """Raises SdcliError naming the first file that is another one now."""
    changed = sorted(name for name in opened.keys() | now.keys() if opened.get(name) != now.get(name))
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise SdcliError(f"the model changed while it was in use: {echo(changed[0])}{more}; run again")


def require_unchanged(opened: Stamps, *parts: Component) -> None:
    """The same, of what lies in the places of these components' files at this moment."""
    for part in parts:
        require_same({name: stamp for name, stamp in opened.items() if name.startswith(f"{part.name}/")}, _now(part))


def _now(part: Component) -> dict[str, str]:
    paths = {file.path for file in part.files}
    try:
        if part.folder not in paths:
            paths |= {path for path in part.folder.iterdir() if path.suffix in (".json", ".txt")}
    except OSError:
        return {f"{part.name}/": GONE}
    stamps = {f"{part.name}/{path.name}": _stamp(path) for path in paths}
    return stamps | {name: _stamp(path) for name, (path, _) in _added(part).items()}


def _added(part: Component) -> dict[str, tuple[Path, str]]:
    """Its files of adapters and of words, which may lie anywhere, by names of their own: where, and as they were."""
    loras = [("lora", file.path, file.stamp) for file in part.adapter_files]
    words = [("embedding", word.origin.path, word.stamp) for word in part.words]
    added = enumerate([*loras, *words], 1)
    return {f"{part.name}/{kind} {index}/{path.name}": (path, stamp) for index, (kind, path, stamp) in added}


def _stamp(path: Path) -> str:
    try:
        return stamp_of(path.stat())
    except OSError:
        return GONE
