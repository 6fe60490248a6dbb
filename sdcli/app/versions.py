"""The libraries that are installed, against the versions that sdcli is tested with, as its own metadata has them."""

from __future__ import annotations

import operator
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

State = Literal["tested", "older", "newer", "missing"]


@dataclass(frozen=True, slots=True)
class Version:
    """Of a library, or of Python: what is installed, None for nothing, and what is wanted, as in `>=2.13,<2.15`."""

    name: str
    installed: str | None
    wanted: str

    @property
    def state(self) -> State:
        """How the one is to the other."""
        if self.installed is None:
            return "missing"
        if any(not fits(self.installed, bound) for bound in self.wanted.split(",") if bound.startswith(">")):
            return "older"
        return "tested" if fits(self.installed, self.wanted) else "newer"


def versions() -> list[Version]:
    """Of Python and of all that sdcli requires; nothing but Python where sdcli was not installed."""
    try:
        told, wanted = metadata.requires("sdcli") or [], metadata.metadata("sdcli")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        told, wanted = [], ""
    found = [Version("python", platform.python_version(), wanted)]
    for line in told:
        named = re.fullmatch(r"([\w.-]+)\s*([^;]*)(;.*)?", line)
        if named is not None and "extra" not in (named[3] or ""):
            bounds = sorted(named[2].replace(" ", "").split(","), reverse=True)
            found.append(Version(named[1], installed(named[1]), ",".join(bounds)))
    return found


def installed(name: str) -> str | None:
    """A library's version; None where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(version: str, bounds: str) -> bool:
    """Whether a version is within bounds like `>=2.13,<2.15`, by its release alone: 2.13.0+cpu is 2.13."""
    return all(_fits(version, bound) for bound in bounds.split(",") if bound)


def _fits(version: str, bound: str) -> bool:
    named = re.fullmatch(r"(>=|<=|<|>|==|!=)([\d.]+)", bound)
    if named is None:
        return True
    ours, theirs = _release(version), _release(named[2])
    size = max(len(ours), len(theirs))
    ours, theirs = ours + (0,) * (size - len(ours)), theirs + (0,) * (size - len(theirs))
    return bool(_COMPARE[named[1]](ours, theirs))


_COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "!=": operator.ne,
}


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
