"""The parts of a model in diffusers layout: found, checked from their headers, and described. Loads no weights."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sdcli.domain import Component, Origin, WeightFile
from sdcli.errors import LacksFiles, SdcliError, echo
from sdcli.families.contract import Family, Found, Part
from sdcli.families.registry import looks_like_a_model
from sdcli.models.configs import checked_config, class_name, keys_passed_over, read_json
from sdcli.models.header import read_header
from sdcli.models.hub import model_folders_in
from sdcli.models.index import INDEX_FILE, read_index
from sdcli.models.tokenizer_files import check_tokenizer, is_tokenizer
from sdcli.models.weight_files import find_weights, note_of_index, what_lies_there


def parts_in_folder(ref: str, folder: Path, besides: Collection[str] = ()) -> tuple[Family, Found]:
    """The family of a folder in diffusers layout, and its parts but those `besides`, which come from elsewhere.

    Raises SdcliError naming all that is missing, or the first that is wrong.
    """
    try:
        if not folder.is_dir():
            raise SdcliError(f"the model {echo(ref)} is not a folder: give one in diffusers layout")
        family, classes, said = read_index(folder)
        parts = sorted(family.parts, key=lambda part: part.stem is None)  # networks first, which say most
        parts = [part for part in parts if part.name not in besides]
        _require_all(ref, folder, parts)
    except OSError as error:
        raise SdcliError(f"cannot read the model {echo(ref)}: {error.strerror}; check its permissions") from error
    opened = {part.name: component_in(folder / part.name, part, classes.get(part.name)) for part in parts}
    notes = (note for part in parts if part.stem for note in _notes(folder / part.name, part.stem))
    return family, Found(opened, tuple(notes), said)


def _require_all(ref: str, folder: Path, parts: list[Part]) -> None:
    missing, hints = [], []
    for part in parts:
        home = folder / part.name
        if part.vocabulary is not None:
            if not is_tokenizer(home):
                missing.append(f"{part.name}/vocab.json and merges.txt")
            continue
        if not (home / part.config_file).is_file():
            missing.append(f"{part.name}/{part.config_file}")
        if part.stem is not None and (lacking := find_weights(home, part.stem).missing):
            missing.append(f"{part.name}/{lacking}")
            hints.append(what_lies_there(home, lacking))
    if missing:
        known = looks_like_a_model(lambda name: (folder / name).is_dir())
        inner = "" if known else model_folders_in(folder)
        if inner:
            raise SdcliError(f"{echo(ref)} is not a model's folder, it has some in it: give {inner}")
        whole = folder.absolute().parent
        if not known and looks_like_a_model(lambda name: (whole / name).is_dir()):
            raise SdcliError(f"{echo(ref)} is a part of a model: give {echo(whole)}")
        hint = next(filter(None, hints), "")
        raise LacksFiles(
            f"the model {echo(ref)} lacks {', '.join(missing)}{'; ' if hint else ''}{hint}: complete the folder"
        )


def _notes(home: Path, stem: str) -> Iterator[str]:
    files = find_weights(home, stem)
    if files.variant not in ("", "fp16"):
        yield f"{home.name}: only the variant {echo(files.variant)} of its weights is there"
    if note := note_of_index(home, files):
        yield note


def settings_in(home: Path, part: Part) -> dict[str, Any]:
    """The settings of a part that a folder has, whether or not its weights are there; none of one that is not read."""
    path = home / part.config_file
    try:
        return checked_config(part, read_json(path), path)
    except (OSError, SdcliError):
        return {}


def component_in(home: Path, part: Part, kind: str | None = None) -> Component:
    """The part that a folder has, of the class that its config names unless a pipeline's index says of which `kind`."""
    path = home / part.config_file
    table = read_json(path) if part.vocabulary is None or os.path.lexists(path) else {}
    if part.is_scheduler and kind is not None and table.get("_class_name") is None:
        table["_class_name"] = kind
    class_ = class_name(part, table, path)
    if kind is not None:
        class_ = class_name(part, {"_class_name": kind}, home.parent / INDEX_FILE)
        table |= {"_class_name": class_} if part.is_scheduler else {}  # whose settings are looked at below
    if part.inner_key is not None and isinstance(table.get(part.inner_key), dict):
        checked_config(part, table, path)
        table = table[part.inner_key]
    config = part.corrected(checked_config(part, table, path), table)
    if part.vocabulary is not None:
        check_tokenizer(home, part.vocabulary)
    files: tuple[WeightFile, ...] = ()
    tensors = None
    if part.stem is not None:
        files = tuple(read_header(path) for path in find_weights(home, part.stem).paths)
        tensors = _tensors(part, files)
    component = Component(
        part.name,
        class_,
        config,
        home,
        files,
        tensors,
        tuple(keys_passed_over(part, table)),
        part.config_file,
        schema=None if part.is_scheduler else part.schema,
    )
    part.check(component)
    return component


def _tensors(part: Part, files: tuple[WeightFile, ...]) -> dict[str, Origin]:
    """The tensors of all files, by the names that the part's class gives them."""
    tensors: dict[str, Origin] = {}
    for file in files:
        for stored, info in file.tensors.items():
            if part.unused.fullmatch(stored):
                continue
            if info.dtype not in part.dtypes:
                raise SdcliError(
                    f"{echo(file.path)}: tensor {echo(stored)} is {info.dtype}; weights may be F32, BF16, F16 or F8"
                )
            today = part.renamed(stored)
            if today in tensors:
                raise SdcliError(f"{echo(file.path)}: tensor {echo(stored)} is there twice: fetch the model again")
            tensors[today] = Origin(file.path, stored, info)
    return tensors
