"""Which files of a repository on the Hub sdcli needs: those that it would read of a folder that had all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Family, Part
from sdcli.families.registry import looks_like_a_model
from sdcli.models.index import INDEX_FILE
from sdcli.models.tokenizer_files import LEGACY_FILES, TOKENIZER_FILES
from sdcli.models.weight_files import PICKLES, weights_to_fetch
from sdcli.units import format_size

SHOWN = 6
"""Files that a message lists at most."""


def has_parts(names: Collection[str]) -> bool:
    """Whether it is a model in diffusers layout, rather than files that are a model each."""
    return INDEX_FILE in names or looks_like_a_model(lambda part: has_folder(names, part))


def has_folder(names: Collection[str], folder: str) -> bool:
    """Whether any of the files lies in the folder."""
    return any(name.startswith(f"{folder}/") for name in names)


def wanted_of(ref: str, family: Family, names: Collection[str]) -> list[str]:
    """The files of a model in diffusers layout. Raises SdcliError, which names all that it lacks."""
    wanted = [INDEX_FILE] if INDEX_FILE in names else []
    missing: list[str] = []
    for part in family.parts:
        for name in _files_of(part, {PurePosixPath(name).name for name in names if _lies_in(name, part.name)}):
            path = f"{part.name}/{name}"
            (wanted if path in names else missing).append(path)
    if missing:
        pickled = any(name.lower().endswith(PICKLES) for name in names)
        why = ", and .bin and .ckpt files are pickles, which are never opened" if pickled else ""
        raise SdcliError(f"{echo(ref)} has no {', no '.join(map(echo, missing[:SHOWN]))}{why}: pull another repository")
    return wanted


def _files_of(part: Part, names: Collection[str]) -> Iterator[str]:
    """What a part is read from, of a folder with these files; what it lacks is among them."""
    if part.vocabulary is not None:
        tables = next((tables for tables in TOKENIZER_FILES if set(tables) <= set(names)), TOKENIZER_FILES[-1])
        yield from tables
        yield from (name for name in (part.config_file, *LEGACY_FILES) if name in names)
        return
    yield part.config_file
    if part.stem is not None:
        files = weights_to_fetch(Path(), names, part.stem)
        yield from (path.name for path in files.paths)
        if files.missing:
            yield files.missing


def _lies_in(name: str, folder: str) -> bool:
    return PurePosixPath(name).parent == PurePosixPath(folder)


def wanted_file(ref: str, file: str | None, sizes: Mapping[str, int]) -> str:
    """The one file to fetch of a repository of single files. Raises SdcliError, which lists them, if it is unclear."""
    files = sorted((name for name in sizes if name.endswith(".safetensors")), key=lambda name: -sizes[name])
    if file is None and len(files) == 1:
        return files[0]
    if file is not None and file in sizes:
        return file
    what = f"{echo(ref)} has no {echo(file)}" if file else f"{echo(ref)} has several models" if files else ""
    if not files:
        raise SdcliError(f"{what or f'{echo(ref)} has no model'}, nor any .safetensors file: pull another repository")
    shown = ", ".join(f"{echo(name, 50)} ({format_size(sizes[name])})" for name in files[:SHOWN])
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    raise SdcliError(f"{what}: name one of {shown}{more}")
