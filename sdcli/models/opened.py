"""A checked model, from wherever its parts lie: a folder, one file, others in place of its own. Loads no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdcli.domain import Component, Model, Sources
from sdcli.errors import BadRequest, ModelMissing, SdcliError, echo
from sdcli.families.contract import PREDICTIONS, SCHEDULER, Elsewhere, Family, Found, Part
from sdcli.families.registry import words_in
from sdcli.models.folder import component_in, parts_in_folder, settings_in
from sdcli.models.header import read_header
from sdcli.models.hub_ids import HubRef, find_in_cache
from sdcli.models.lora import with_loras
from sdcli.models.nearby import advice, find_nearby, seen_from
from sdcli.models.single import parts_in_file
from sdcli.models.tokenizer_files import TOKENIZER_FILES, is_tokenizer


def open_model(ref: str, sources: Sources | Path, sha256: str | None = None) -> Model:
    """Check a model from its headers. Raises SdcliError naming all that is missing, or the first that is wrong."""
    if isinstance(sources, Path):
        sources = Sources(str(sources))
    sources = _from_anywhere(sources)
    path = Path(sources.path)
    if path.is_dir():
        family, found = parts_in_folder(ref, path, sources.parts)
    else:
        family, found = parts_in_file(ref, path, sources.prediction)
        sources, found = _with_nearby(family, sources, found)
    sources = replace(sources, parts={name: where or pulled(family, name) for name, where in sources.parts.items()})
    given = {name: _part(family, name, where) for name, where in sources.parts.items()}
    for part in family.parts:
        if part.of_model and part.name in given:
            own = found.parts[part.name].config if part.name in found.parts else settings_in(path / part.name, part)
            given[part.name] = _in_place_of(own, given[part.name], part.of_model)
    parts = {**found.parts, **given}
    _require_all(ref, family, parts, found)
    if sources.prediction is not None:
        scheduler = parts[SCHEDULER.name]
        predicts = {"prediction_type": PREDICTIONS[sources.prediction]}
        parts[SCHEDULER.name] = replace(scheduler, config=scheduler.config | predicts)
    for where in sources.embeddings:
        for name, words in words_in(family, read_header(Path(where)), parts).items():
            parts[name] = replace(parts[name], words=(*parts[name].words, *words))
    model = Model(
        ref=ref,
        sources=sources,
        family=family.name,
        parts={part.name: parts[part.name] for part in (*family.parts, *family.extras) if part.name in parts},
        sha256=sha256,
        notes=found.notes,
        said=found.said,
    )
    family.require_fit(ref, model)
    return with_loras(model, sources.loras)


def _from_anywhere(sources: Sources) -> Sources:
    """The same with paths that hold in any folder."""
    return replace(
        sources,
        path=_place(sources.path),
        parts={name: where and _place(where) for name, where in sources.parts.items()},
        embeddings=tuple(map(_place, sources.embeddings)),
        loras=tuple((_place(where), weight) for where, weight in sources.loras),
    )


def _place(where: str) -> str:
    """Where it is. A file that is a link keeps its name: those in the Hub's cache link to digests."""
    path = Path(where)
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def _with_nearby(family: Family, sources: Sources, found: Found) -> tuple[Sources, Found]:
    """What a file lacks and nobody gave, from where people keep it; what was taken is told."""
    taken: dict[str, str] = {}
    for part in sorted(family.parts, key=lambda part: part.vocabulary is not None):  # which may lie beside another
        if part.name in found.elsewhere and part.name not in {**found.parts, **sources.parts}:
            files = [Path(where) for where in (sources.path, *sources.parts.values(), *taken.values())]
            if place := find_nearby(part, found.elsewhere[part.name], [file for file in files if file.is_file()]):
                taken[part.name] = _place(str(place))
    if not taken:
        return sources, found
    home = Path(sources.path).parent
    note = "taken with it: " + ", ".join(
        f"{name} {echo(seen_from(home, Path(where)))}" for name, where in taken.items()
    )
    return replace(sources, parts={**sources.parts, **taken}), replace(found, notes=(*found.notes, note))


def _part(family: Family, name: str, where: str) -> Component:
    """A part that comes from elsewhere: from a folder of its own or of a model, or from a file that has it."""
    part, path = _named(family, name), Path(where)
    if part.vocabulary is not None:
        homes = [home for home in (path, path / name) if is_tokenizer(home)] if path.is_dir() else []
        if path.name in (name for names in TOKENIZER_FILES for name in names) and is_tokenizer(path.parent):
            homes = [path.parent]
        if not homes:
            names = " or ".join(" and ".join(names) for names in TOKENIZER_FILES)
            raise SdcliError(f"{echo(where)} is no tokenizer: give a folder with {names}, or that file")
        return component_in(homes[0], part)
    if path.is_dir():
        homes = [home for home in (path, path / name) if (home / part.config_file).is_file()]
        if not homes:
            raise SdcliError(f"{echo(where)} has no {part.config_file} of a {name}: give its folder, or a file")
        return component_in(homes[0], part)
    _, found = parts_in_file(where, path, family_name=family.name)
    if name not in found.parts:
        raise SdcliError(f"{echo(where)} has no {name}, it has {', '.join(found.parts)}: give another file")
    return found.parts[name]


def _in_place_of(own: Mapping[str, Any], given: Component, keys: Sequence[str]) -> Component:
    """A part that is given, with those settings of the model's own that go with the model, if it has them."""
    going = {key: own[key] for key in keys if own.get(key) is not None}
    return replace(given, config=given.config | going) if len(going) == len(keys) else given


def _named(family: Family, name: str) -> Part:
    """The part of the family by its name. Raises BadRequest where it has none."""
    part = next((part for part in (*family.parts, *family.extras) if part.name == name), None)
    if part is None:
        raise BadRequest(f"models like this one take no {name.replace('_', ' ')}: leave it out")
    return part


def pulled(family: Family, name: str) -> str:
    """A part that no folder of a model has, in the Hub's cache. Raises ModelMissing, which says what fetches it."""
    part = _named(family, name)
    ref = HubRef(part.pulled or "")
    found = find_in_cache(ref) if part.pulled else None
    home = None if found is None else found[0]
    if home is not None and home.is_dir() and not (home / part.config_file).is_file():
        files = {path.stem: path for path in sorted(home.glob("*.safetensors"), reverse=True)}
        home = files.get(part.stem or "") or next((files[stem] for stem in files if "decoder" in stem), None)
    if home is None:
        fetch = f"fetch it with {ref.pull_command} {part.stem}.safetensors, or " if part.pulled else ""
        raise ModelMissing(f"no {name.replace('_', ' ')} on this disk: {fetch}give {part.option}")
    return str(home)


def _require_all(ref: str, family: Family, parts: dict[str, Component], found: Found) -> None:
    missing = [part for part in family.parts if part.name not in parts]
    if missing:
        lacks = " and ".join(part.name for part in missing)
        remedy = _remedy(missing, found.elsewhere)
        raise SdcliError(f"{echo(ref)} has {_listed(found)} and lacks {lacks}: {remedy}")


def _listed(found: Found) -> str:
    return " and ".join(found.parts) or "nothing"


def _remedy(missing: list[Part], elsewhere: Mapping[str, Elsewhere]) -> str:
    options = [part.option for part in missing if part.option]
    if len(options) < len(missing):
        return "give a whole checkpoint with --model"
    given = f"give {' and '.join(options)}"
    lacking = [elsewhere[part.name] for part in missing if part.name in elsewhere]
    return f"{given}, or {advice(lacking)}" if lacking else given
