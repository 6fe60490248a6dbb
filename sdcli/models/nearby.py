"""Parts that a single file lacks, found where people keep them: beside it, in ComfyUI's folders, in the Hub's cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from sdcli.errors import SdcliError
from sdcli.families.contract import Elsewhere, Part
from sdcli.models.hub_ids import find_in_cache, parse_hub_ref
from sdcli.models.tokenizer_files import is_tokenizer

LEVELS = 5
"""Folders above a file that are looked in: of ComfyUI/models/diffusion_models/some/more.safetensors, ComfyUI is one."""

ENTRIES = 4000
"""Of a folder and those in it, that are looked at: a file may lie in a folder with everything else."""


def find_nearby(part: Part, elsewhere: Elsewhere, files: Sequence[Path]) -> Path | None:
    """A file or a folder that has the part: in places near these files first, then in the Hub's cache."""
    if part.vocabulary is not None:
        places = (place for place in _places(part, elsewhere, files) if is_tokenizer(place))
        return next(places, None) or _in_cache(part, elsewhere)
    for place in _places(part, elsewhere, files):
        if found := _best(place, elsewhere.patterns):
            return found
        if place.name == part.name and (place / part.config_file).is_file():
            return place
    return _in_cache(part, elsewhere)


def _places(part: Part, elsewhere: Elsewhere, files: Sequence[Path]) -> Iterator[Path]:
    homes = [file.parent for file in files]
    yield from homes
    for home in homes:
        for above in (home, *home.parents[:LEVELS]):
            yield from (place for name in (part.name, *elsewhere.folders) if (place := above / name).is_dir())


def _best(place: Path, patterns: Sequence[str]) -> Path | None:
    """The likeliest file in a folder, or in folders there: of those with the first pattern the shortest name."""
    names = [*islice(_files(place), ENTRIES)]
    for pattern in patterns:
        found = [path for path in names if fnmatch(path.name.lower(), pattern) and os.path.isfile(path)]
        if found:
            return min(found, key=lambda path: (len(path.name), str(path)))
    return None


def _files(place: Path) -> Iterator[Path]:
    """The files in a folder, then those in folders there."""
    deeper = []
    for entry in _entries(place):
        if os.path.isdir(entry.path):  # which is false for what cannot be looked at
            deeper.append(Path(entry.path))
        else:
            yield Path(entry.path)
    for folder in deeper:
        yield from (Path(entry.path) for entry in _entries(folder))


def _entries(place: Path) -> list[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(place) as entries:
        return [*islice(entries, ENTRIES)]
    return []


def _in_cache(part: Part, elsewhere: Elsewhere) -> Path | None:
    for ref in filter(None, map(parse_hub_ref, elsewhere.refs)):
        found = None
        with suppress(OSError, SdcliError):
            found = find_in_cache(ref)
        if found is None:
            continue
        path, _ = found
        if path.is_file():
            return path
        home = next((home for home in (path / part.name, path) if part.vocabulary and is_tokenizer(home)), None)
        if home is not None:
            return home
    return None


def seen_from(home: Path, place: Path) -> str:
    """The place from a folder on: short where both are in one tree."""
    near = any(above in place.parents for above in (home, *home.parents[:LEVELS]) if above != above.parent)
    return os.path.relpath(place, home) if near else str(place)


def advice(lacking: Sequence[Elsewhere]) -> str:
    """What to call the files that are lacking, and what fetches them."""
    files = _listed([one.file for one in lacking])
    pulls = _listed([f"sdcli models pull {one.refs[0]}" for one in lacking])
    return f"put {files} beside it; {pulls} {'fetch them' if len(lacking) > 1 else 'fetches it'}"


def _listed(some: Sequence[str]) -> str:
    *first, last = some
    return f"{', '.join(first)} and {last}" if first else last
