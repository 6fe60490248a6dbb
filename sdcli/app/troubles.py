"""Combinations of systems, processors and libraries that are known to go wrong: configs/troubles, by name."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcli import machine, settings
from sdcli.app.versions import fits, installed
from sdcli.errors import SdcliError
from sdcli.models.disks import lies_in_memory

Facts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trouble:
    """One of them: why it is bad, and what to do about it."""

    name: str
    why: str
    remedy: str
    broken: bool
    """Whether nothing can be drawn with it."""


def known_troubles(facts: Facts) -> Iterator[Trouble]:
    """Those that the facts are all there of."""
    for name, told in settings.read_config("troubles", "known").items():
        if all(_is_so(facts.get(fact, ""), wanted) for fact, wanted in told["when"].items()):
            yield Trouble(name, told["why"], told["do"], told.get("broken", False))


def _is_so(fact: str, wanted: str) -> bool:
    if wanted.startswith(("<", ">", "=")):
        return bool(fact) and fits(fact, wanted)
    return re.fullmatch(wanted, fact) is not None


def facts(device: str, dtype: str) -> Facts:
    """What is so here."""
    return {
        "system": platform.system().lower(),
        "machine": platform.machine(),
        "cpu": machine.cpu_name(),
        "libc": platform.libc_ver()[0],
        "build": machine.torch_gpu_build() or "",
        "device": device,
        "dtype": dtype,
        "mps_fallback": os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", ""),
        "address_space": "limited" if _address_space_is_limited() else "free",
        "cache": "memory" if _cache_lies_in_memory() else "disk",
        "proc": "" if _sees_itself() else "hidden",
        **{name: installed(name) or "" for name in ("torch", "diffusers", "transformers")},
    }


def _address_space_is_limited() -> bool:
    if sys.platform == "win32":
        return False
    import resource

    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    return any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in kinds)


def _cache_lies_in_memory() -> bool:
    try:
        cache = settings.cache_dir()
        return lies_in_memory(next(path for path in (cache, *cache.parents) if path.exists()))
    except (OSError, SdcliError, StopIteration):
        return False


def _sees_itself() -> bool:
    """Whether /proc is there and tells of this very process."""
    try:
        return not sys.platform.startswith("linux") or os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return not Path("/proc").is_dir() and not sys.platform.startswith("linux")
