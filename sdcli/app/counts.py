"""Counts of a model's network, remembered: in the cache by what they depend on, else asked of a worker.

A count is the work of a dry run (engine/count.py): a second for Stable Diffusion 1.5, once for each size of picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from sdcli import __version__, settings
from sdcli.domain import DeviceName, DtypeName, Model, Request
from sdcli.errors import SdcliError
from sdcli.families.prompts import turns_of
from sdcli.families.registry import family_of
from sdcli.messages import Count
from sdcli.plan.counts import Counts, counts_from_json
from sdcli.units import MIB

LAYOUT = 2
"""Raised when counts made before are none any more."""

LIMIT_BYTES = 16 * MIB
"""Stable Diffusion 1.5's counts have 0.1 MiB."""

KEPT = 400
"""Counts in the cache; those that were made longest ago go first."""


class Uncounted(Exception):
    """These requests must be counted by a worker first."""

    def __init__(self, *requests: Request) -> None:
        super().__init__(f"{len(requests)} requests are not counted yet")
        self.requests = requests


class CountBook:
    """Counts of one model on one device in one type, by request."""

    def __init__(self, model: Model, device: DeviceName, dtype: DtypeName) -> None:
        self._model, self._dtype, self._facts = model, dtype, (model.digest, device, dtype, _versions())
        self._counts: dict[str, Counts] = {}
        self._awaited: list[Request] = []

    def __call__(self, request: Request) -> Counts:
        """Raises Uncounted where nothing is known."""
        key = self._key(request)
        counts = self._counts.get(key) or _read(key)
        if counts is None:
            raise Uncounted(request)
        self._counts[key] = counts
        return counts

    def ask(self, lack: Uncounted) -> Count:
        """What a worker is told to count. It answers one after another."""
        self._awaited = [*lack.requests]  # of a worker that was asked before no answer comes any more
        return Count(self._model.sources, lack.requests, self._dtype)

    def learn(self, payload: bytes) -> bool:
        """Remember the next answer. Whether more are to come."""
        key = self._key(self._awaited.pop(0))
        self._counts[key] = counts_from_json(payload)
        _keep(key, payload)
        return bool(self._awaited)

    def _key(self, request: Request) -> str:
        facts = [LAYOUT, *self._facts, *facts_of(self._model, request)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def facts_of(model: Model, request: Request) -> list[object]:
    """What counts depend on of a request: not seeds or words, but how many there may be and how often they change."""
    same = replace(request, prompt="", negative="", steps=1, guidance=0.0, seed=0, count=1)
    same = replace(same, sampler=None, schedule=None, emphasis="a1111", canvas=None)
    same = replace(same, original_size=None, crop=(0, 0), target_size=None)
    same = replace(same, strength=None if request.strength is None else 0.5)
    if request.hires is not None:
        same = replace(same, hires=replace(request.hires, steps=1, strength=0.5))
    facts: list[object] = [str(same), request.guided, family_of(model).chunks(model, request)]
    turns = turns_of(request)
    if turns.order or turns.weighted:
        facts += [len(turns.pairs), turns.weighted and request.emphasis]
    return facts


def _versions() -> str:
    libraries = " ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"sdcli {__version__} {libraries}"


def _folder() -> Path:
    return settings.cache_dir() / "counts"


def _read(key: str) -> Counts | None:
    """What the cache has, if it is ours and whole."""
    try:
        with (_folder() / f"{key}.json").open("rb") as file:
            raw = file.read(LIMIT_BYTES + 1)
        return counts_from_json(raw) if len(raw) <= LIMIT_BYTES else None
    except (OSError, SdcliError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _keep(key: str, payload: bytes) -> None:
    """In the cache, whole; where that cannot be, they are counted again."""
    with suppress(OSError, SdcliError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        opened, temporary = tempfile.mkstemp(prefix=".count-", dir=folder)
        try:
            with os.fdopen(opened, "wb") as file:
                file.write(payload)
            os.replace(temporary, folder / f"{key}.json")
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in paths[:-KEPT]:
            path.unlink(missing_ok=True)
