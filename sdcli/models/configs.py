"""Config files of models, which are other people's input: which classes and which keys are let through.

Nothing in a config may name code to import. A part's class comes from our own table. Only keys of the part's schema
reach a constructor, with plain numbers, words and short lists as values; a key that asks for what is not done is
refused by name, and what else other versions of the libraries have left there is passed over.
"""

from __future__ import annotations

import json
import math
import reprlib
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Part
from sdcli.models.schedulers import FLOW_SETTINGS, SCHEDULERS, SETTINGS, UNSET, checked_scheduler
from sdcli.units import MIB

CONFIG_LIMIT_BYTES = 1 * MIB

_NOTES = frozenset(
    {
        "_class_name",
        "_commit_hash",
        "_diffusers_version",
        "_name_or_path",
        "architectures",
        "dtype",
        "model_type",
        "name_or_path",
        "torch_dtype",
        "transformers_version",
    }
)
"""Keys that the libraries write about themselves. They are read for the class name, if at all."""

_CODE = frozenset({"auto_map", "custom_pipeline", "trust_remote_code"})
"""Keys that name somebody's program."""

_NUMBER_LIMIT = 10**6
"""Far above any of the models that are known: a config must not ask for tables of terabytes."""

_LENGTH_LIMIT, _WORD_LIMIT = 32, 64
"""Entries of a list, one a block of the network; and letters of a word."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of modest size. Raises SdcliError when it is anything else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, a device never ends
            raise SdcliError(f"{echo(path)} is not a regular file: fetch it again")
        with path.open("rb") as file:
            raw = file.read(CONFIG_LIMIT_BYTES + 1)
        if len(raw) > CONFIG_LIMIT_BYTES:
            raise SdcliError(f"{echo(path)} is too large for a config file: refused")
        table = json.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror}; check the path and its permissions") from error
    except (ValueError, RecursionError) as error:
        raise SdcliError(f"{echo(path)} is not valid JSON ({echo(error)}): fetch it again") from error
    if not isinstance(table, dict):
        raise SdcliError(f"{echo(path)} is not a table of settings: fetch it again")
    return table


def shown(value: object) -> str:
    """A value of a config, in quotes and short, as its file has it where it is no list and no table."""
    if isinstance(value, str):
        return echo(value, 40)
    return echo(reprlib.repr(value) if isinstance(value, list | dict) else json.dumps(value), 40)


def class_name(part: Part, table: dict[str, Any], path: Path) -> str:
    """The class a config asks for, if our table has it. Raises SdcliError otherwise; nothing is imported."""
    known = sorted(part.classes or SCHEDULERS)
    name = table.get("_class_name")
    if name is None and part.default_class is not None:
        name = table.get(part.class_key) or part.default_class
        name = name[0] if isinstance(name, list) and part.class_key == "architectures" else name
    if not isinstance(name, str) or name not in known:
        asked = f"asks for the class {echo(name)}" if isinstance(name, str) else "names no class"
        hint = ", ".join(known[:3]) + (" …" if len(known) > 3 else "")
        if part.is_scheduler:
            hint = f"{' '.join(name.removesuffix('Scheduler') for name in known)}Scheduler: edit _class_name"
        length = 40 if part.is_scheduler else 80  # so that all of them fit into a message
        raise SdcliError(f"{echo(path, length)} {asked}: refused; a {part.name} may be {hint}")
    return name


def checked_config(part: Part, table: dict[str, Any], path: Path) -> dict[str, Any]:
    """The keys of a config that reach a constructor. Raises SdcliError for what is asked for and not done.

    And for a value that no constructor takes.
    """
    for key in table:
        if key in _CODE:
            raise SdcliError(f"{echo(path)} sets {echo(key)}: refused; no code that a model brings is run")
    if part.is_scheduler:
        return checked_scheduler(table, path, shown)
    rules = {field.name: field.metadata.get("rule") for field in fields(part.schema)}
    kept = {}
    for key, value in table.items():
        if key in part.unset and _is_set(value, part.unset[key]):
            raise SdcliError(
                f"{echo(path)} sets {echo(key)} to {shown(value)}: that is another family of model, not supported yet"
            )
        if key in rules:
            rule = rules[key]
            if rule is not None and not (_is_plain(value) and rule(value)):
                raise SdcliError(
                    f"{echo(path)} sets {echo(key)} to what no known model has ({shown(value)}): refused;"
                    " fetch it again"
                )
            kept[key] = value
    if fault := next(part.schema(**kept).faults(kept), None):
        raise SdcliError(f"{echo(path)} {fault}: refused; fetch it again")
    return kept


def keys_passed_over(part: Part, table: dict[str, Any]) -> list[str]:
    """The keys of a config that are not known here: no constructor gets to see them."""
    if part.is_scheduler:
        known = frozenset().union(*SETTINGS.values(), *FLOW_SETTINGS.values(), UNSET)
    else:
        known = frozenset(field.name for field in fields(part.schema)) | part.unset.keys() | part.idle
    return sorted(set(table) - _NOTES - known)


def _is_set(value: object, unset: object) -> bool:
    """Whether it is neither null nor what it is while it is unset."""
    return value is not None and (bool(value) if unset is None else value != unset)


def _is_plain(value: object, depth: int = 0) -> bool:
    """Whether a value is a finite number, a word, or a short list of such."""
    if isinstance(value, list):
        return depth < 2 and len(value) <= _LENGTH_LIMIT and all(_is_plain(item, depth + 1) for item in value)
    if isinstance(value, int):
        return abs(value) <= _NUMBER_LIMIT
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (isinstance(value, str) and len(value) <= _WORD_LIMIT)
