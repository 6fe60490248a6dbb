"""`model_index.json` of a pipeline in diffusers layout: what it is, and which classes its parts have.

A folder without one is as good. What it says is compared with what is known here; nothing in it is imported.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import get_args

from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Family, Library, Part
from sdcli.families.registry import recognise
from sdcli.models.configs import read_json

INDEX_FILE = "model_index.json"

_LIBRARIES = get_args(Library)

_IDLE = {"requires_safety_checker"}
"""Keys that have no say in a picture."""


def read_index(folder: Path) -> tuple[Family, dict[str, str], dict[str, bool]]:
    """The family of the model in a folder, the class of each part that an index names, and what it says besides.

    That is of the keys that the family knows, where it says otherwise than usual. There may be no index.

    Raises SdcliError for a pipeline of a kind that is not known.
    """
    path = folder / INDEX_FILE
    table = read_json(path) if os.path.lexists(path) else {}
    family = recognise(lambda part: (folder / part).is_dir(), table.get("_class_name"), path, partial(_told, folder))
    if table.get("custom_pipeline") or table.get("auto_map"):
        raise SdcliError(f"{echo(path)} names a pipeline of its own: refused; no code that a model brings is run")
    classes = {part.name: _class(path, part.name, table[part.name]) for part in family.parts if part.name in table}
    usual = {key: value for key, value in family.index_extras.items() if isinstance(value, bool) and key not in _IDLE}
    said = {key: table[key] for key, value in usual.items() if isinstance(table.get(key), bool) and table[key] != value}
    return family, classes, said


def _told(folder: Path, part: Part) -> object:
    """The class that a part's own config names."""
    config = folder / part.name / part.config_file
    return read_json(config).get("_class_name") if os.path.lexists(config) else None


def _class(path: Path, name: str, entry: object) -> str:
    match entry:
        case [str(library), str(kind)] if library in _LIBRARIES:
            return kind
    raise SdcliError(f"{echo(path)} takes its {echo(name)} from no known library: refused; fetch it again")
