"""Settings that are not code: configs/*.toml shipped with the package, the user's config file, the folders.

Refuses to know what a setting is good for; it only finds, reads and checks the shape.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.units import parse_size


@dataclass(frozen=True, slots=True)
class Profile:
    """A device to pose as."""

    name: str
    limit_bytes: int
    about: str


def config_names(kind: str) -> list[str]:
    """The names of the shipped configs of one kind: `profiles` or `models`."""
    folder = resources.files("sdcli.configs") / kind
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_config(kind: str, name: str) -> dict[str, Any]:
    """One shipped config, as plain TOML tables. Raises BadRequest for a name that is not there."""
    if name not in config_names(kind):
        raise BadRequest(f"no such {kind[:-1]}: {echo(name)}; there are {', '.join(config_names(kind))}")
    return tomllib.loads((resources.files("sdcli.configs") / kind / f"{name}.toml").read_text("utf-8"))


def read_profile(name: str) -> Profile:
    """A device profile of configs/profiles."""
    table = read_config("profiles", name)
    return Profile(name, parse_size(table["mem_limit"]), table["about"])


def config_path() -> Path:
    """The user's config file: $SDCLI_CONFIG, else config.toml in the platform's folder for settings."""
    named = os.environ.get("SDCLI_CONFIG")
    return Path(named) if named else _base("XDG_CONFIG_HOME", "APPDATA", ".config") / "sdcli" / "config.toml"


def cache_dir() -> Path:
    """Where made models and rescued pictures live: $SDCLI_CACHE, else the platform's cache folder."""
    named = os.environ.get("SDCLI_CACHE")
    return Path(named) if named else _base("XDG_CACHE_HOME", "LOCALAPPDATA", ".cache") / "sdcli"


def _base(unix_variable: str, windows_variable: str, home_folder: str) -> Path:
    variable = windows_variable if sys.platform == "win32" else unix_variable
    named = os.environ.get(variable)
    try:
        return Path(named) if named else Path.home() / home_folder
    except RuntimeError as error:
        raise SdcliError("this user has no home folder: set SDCLI_CACHE and SDCLI_CONFIG") from error


def read_user_config(known: Mapping[str, object]) -> dict[str, Any]:
    """The user's defaults for options, keyed as the options are, hyphens or underscores alike.

    An absent file is no settings. Raises BadRequest for a key that is no option, SdcliError for an
    unreadable or malformed file.
    """
    path = config_path()
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if os.environ.get("SDCLI_CONFIG"):
            raise SdcliError(f"the config file {echo(path)} of SDCLI_CONFIG is not there") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SdcliError(f"cannot read the config file {echo(path)}: {echo(error)}") from error
    settings = {key.replace("-", "_"): value for key, value in table.items()}
    for key in settings:
        if key not in known:
            raise BadRequest(f"unknown setting {echo(key)} in {echo(path)}; known are {', '.join(sorted(known))}")
    return settings
