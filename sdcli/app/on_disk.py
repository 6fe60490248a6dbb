"""The models on this disk: the built-in one, synthetic ones in sdcli's cache, and those in the Hub's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdcli.domain import Model
from sdcli.errors import LacksFiles, SdcliError, echo
from sdcli.families.registry import family_of
from sdcli.models.hub_ids import HubRef, cached_refs, find_in_cache
from sdcli.models.reference import DEMO, resolve_model
from sdcli.models.synthetic import SYNTHETIC, made_folder, made_names


@dataclass(frozen=True, slots=True)
class Entry:
    """A model as a list has it: `family` where it can be drawn with, else `why` it cannot."""

    ref: str
    path: Path
    size_bytes: int
    family: str | None
    why: str | None


def refs_on_disk() -> Iterator[str]:
    """What `--model` may name, without a look at what it is: quick enough for a shell's completion."""
    yield DEMO
    yield from (SYNTHETIC + name for name in made_names())
    yield from (str(ref) for ref in cached_refs())


def models_on_disk() -> Iterator[Entry]:
    """All of them, looked at from their headers."""
    yield _entry(DEMO, DEMO, Path(resolve_model(DEMO, _never).path))
    for name in made_names():
        yield _entry(SYNTHETIC + name, str(made_folder(name)), made_folder(name))
    for ref in cached_refs():
        yield from _cached(ref)


def _cached(ref: HubRef) -> Iterator[Entry]:
    """A snapshot, or each of the models in one file that it has beside no parts."""
    found = find_in_cache(ref)
    if found is None:
        return
    path, _ = found
    files = [] if path.is_file() else sorted(name.name for name in path.iterdir() if name.suffix == ".safetensors")
    if path.is_file() or not files:
        yield _entry(str(ref), str(path), path)
        return
    if any(one.is_dir() for one in path.iterdir()):
        yield _entry(str(ref), str(path), path)
    for name in files:
        yield _entry(str(HubRef(ref.repo, ref.revision, name)), str(path / name), path / name)


def _entry(ref: str, opened: str, path: Path) -> Entry:
    try:
        model = resolve_model(opened, _never)
    except SdcliError as error:
        return Entry(ref, path, size_of(path), None, _few_words(error, opened))
    return Entry(ref, path, size_of(path), family_of(model).label(model), None)


def _few_words(error: SdcliError, opened: str) -> str:
    """What is wrong, without what to do and without the path that stands in another column."""
    what = str(error).replace(f"the model {echo(opened)}", "it").replace(echo(opened), "it")
    if isinstance(error, LacksFiles):
        named, _, rest = what.partition(", ")
        return named + (" and more" if rest else "")
    return what.partition(": ")[0].partition("; ")[0]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, links followed; what is gone has none."""
    if not path.is_dir():
        return _size(path)
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(path) for name in names)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def files_of(model: Model) -> Iterator[Path]:
    """The files with weights, each once."""
    yield from dict.fromkeys(file.path for part in model.parts.values() for file in part.files)


def _never(name: str, folder: Path) -> None:
    raise SdcliError(f"{echo(SYNTHETIC + name)} is damaged: the next run makes it anew")
