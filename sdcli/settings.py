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
class Machine:
    """Another machine than this one, as far as a plan for it needs to know. Rates are a second's."""

    memory_bytes: int
    processor: str
    dtype: str
    """That sdcli computes in there by itself."""
    flops: float
    """Floating-point operations of a denoise step."""
    cast_bytes: float
    """Of streamed weights, in the arithmetic's type, that are cast and laid out."""
    disk_bytes: float
    speed_from: str
    """Whose speed that is: where it was measured, or what was assumed."""
    kernels: str
    """`avx2` where it has the kind of kernels that plans were measured with, else empty."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A device to pose as."""

    name: str
    limit_bytes: int
    about: str
    limit_from: str
    """Whose word the ceiling is."""
    machine: Machine


FEW = 16
"""Settings that a message lists."""


def config_names(kind: str) -> list[str]:
    """The names of the shipped configs of one kind: `profiles` or `models`."""
    folder = resources.files("sdcli.configs") / kind
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_config(kind: str, name: str) -> dict[str, Any]:
    """One shipped config, as plain TOML tables. Raises BadRequest for a name that is not there."""
    if name not in config_names(kind):
        raise BadRequest(f"no such {kind[:-1]}: {echo(name)}; {_nearest(name, config_names(kind))}")
    return tomllib.loads((resources.files("sdcli.configs") / kind / f"{name}.toml").read_text("utf-8"))


def read_profile(name: str) -> Profile:
    """A device profile of configs/profiles."""
    table = read_config("profiles", name)
    told = table["machine"]
    machine = Machine(
        memory_bytes=parse_size(told["memory"]),
        processor=told["processor"],
        dtype=told["dtype"],
        flops=told["gflops"] * 1e9,
        cast_bytes=parse_size(told["cast"]),
        disk_bytes=parse_size(told["disk"]),
        speed_from=told["speed_from"],
        kernels=told.get("kernels", ""),
    )
    return Profile(name, parse_size(table["mem_limit"]), table["about"], table["mem_limit_from"], machine)


def config_path() -> Path:
    """The user's config file: $SDCLI_CONFIG, else sdcli/config.toml in the platform's folder for settings."""
    named = os.environ.get("SDCLI_CONFIG")
    return Path(at_home(named)) if named else _base("XDG_CONFIG_HOME", "APPDATA", ".config") / "sdcli" / "config.toml"


def cache_dir() -> Path:
    """Where made models and rescued pictures live: $SDCLI_CACHE, else the platform's cache folder."""
    named = os.environ.get("SDCLI_CACHE")
    return Path(at_home(named)) if named else _base("XDG_CACHE_HOME", "LOCALAPPDATA", ".cache") / "sdcli"


def home_cache() -> Path:
    """The folder of caches as programs for Unix have it on every system, huggingface_hub among them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache")


def at_home(path: str) -> str:
    """`path` with a leading ~ or ~user as that home folder; as it is where there is no such user.

    A shell does so itself, except within quotes, after the = of an option and in files.
    """
    if path == "~" or path.startswith(("~/", "~" + os.sep)):
        return str(_home()) + path[1:]
    try:
        return os.path.expanduser(path)
    except ValueError:  # a NUL byte, which no user's name has
        return path


def _base(unix_variable: str, windows_variable: str, home_folder: str) -> Path:
    """The folder that the variable names, if it is absolute: the XDG specification has others passed over."""
    named = os.environ.get(windows_variable if sys.platform == "win32" else unix_variable, "")
    return Path(named) if os.path.isabs(named) else _home() / home_folder


def _home() -> Path:
    """The user's home folder. An empty HOME is none: the list of users knows."""
    try:
        if sys.platform == "win32" or os.environ.get("HOME"):
            return Path.home()
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (RuntimeError, KeyError) as error:
        raise SdcliError("this user has no home folder: set SDCLI_CACHE and SDCLI_CONFIG") from error


def read_user_config(known: Mapping[str, object]) -> dict[str, Any]:
    """The user's defaults for options, keyed as the options are, hyphens or underscores alike.

    An absent file is no settings, and so is a default one in a folder that this user may not look into. Raises
    BadRequest for a key that is no option, SdcliError for an unreadable or malformed file.
    """
    path = config_path()
    if not os.environ.get("SDCLI_CONFIG") and not _can_be_seen(path):
        return {}
    try:
        table = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise SdcliError(f"the config file {echo(path)} of SDCLI_CONFIG is not there") from None
    except UnicodeDecodeError as error:
        raise SdcliError(f"cannot read the config file {echo(path)}: it is not UTF-8; save it as that") from error
    except (OSError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SdcliError(f"cannot read the config file {echo(path)}: {echo(error)}") from error
    settings = {key.replace("-", "_"): value for key, value in table.items()}
    for key in settings:
        if key not in known:
            raise BadRequest(f"unknown setting {echo(key)} in {echo(path)}; {_hint(key, sorted(known))}")
    return settings


def _hint(key: str, known: list[str]) -> str:
    """All that is known if it is not much, else what is most like the key."""
    if len(known) <= FEW:
        return f"known are {', '.join(known)}"
    nearest = _alike(key, known)
    return f"nearest to it: {', '.join(nearest)}" if nearest else "--help shows what there is"


def _nearest(name: str, known: list[str]) -> str:
    """What is most like the name, if anything is, and all that there is."""
    alike = _alike(name, known)
    near = f"nearest to it: {', '.join(alike)}; " if alike else ""
    return f"{near}there are {', '.join(known)}"


def _alike(name: str, known: list[str]) -> list[str]:
    import difflib  # here, because it is seldom needed

    return difflib.get_close_matches(name, known, 3, 0.5)


def _can_be_seen(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return not isinstance(error, (FileNotFoundError, PermissionError))
    return True
