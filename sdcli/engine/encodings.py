"""What a stage gave before, kept in the cache: a prompt that was encoded once needs its text encoder no more.

A safetensors file for each, named by a digest of all that it depends on, the words among them, and whole or not there.
It is for this user's eyes alone, and looked at with suspicion: one that is damaged is as none. All together have a
cap; those used longest ago go first.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from sdcli import __version__, machine, settings
from sdcli.domain import Adapter
from sdcli.engine.stage import is_finite
from sdcli.engine.work import State, Work
from sdcli.errors import SdcliError
from sdcli.families.contract import Stage
from sdcli.families.prompts import turns_of
from sdcli.models.stamps import stamps_of
from sdcli.units import MIB

LAYOUT = 1
"""Raised when those kept before can be used no more."""

CAP_BYTES, FILE_BYTES = 256 * MIB, 64 * MIB
"""Of all together, and of one: two prompts of 512 tokens of FLUX.2 in FP32 have 30 MiB."""

SUFFIX = ".safetensors"

ABOUT, DIGEST = "about", "sha256"
"""Tensors of bytes beside those that were given: what was said of them, and a digest of everything else."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a stage gave, and what it had to say."""

    state: State
    notices: tuple[str, ...]


def read_kept(work: Work, stage: Stage) -> Given | None:
    """What is kept of this stage of this job: None where there is nothing, or nothing whole."""
    if not (stage.kept and work.keeps):
        return None
    try:
        path = _place(work, stage)
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES + 1)
        given = _from_bytes(raw) if len(raw) <= FILE_BYTES else None
        if given is not None:
            os.utime(path)
    except (OSError, SdcliError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if given is None:
        return None
    device = work.device.torch_device
    moved = {
        name: {key: one.to(device) if one.is_floating_point() else one for key, one in tensors.items()}
        for name, tensors in given.state.items()
    }
    return Given(moved, given.notices)


def keep(work: Work, stage: Stage, given: Given) -> None:
    """Keep what the stage gave for other runs; where that cannot be, they compute it again."""
    if not (stage.kept and work.keeps):
        return
    with suppress(OSError, SdcliError):
        path, raw = _place(work, stage), _to_bytes(given)
        if len(raw) > FILE_BYTES:
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)  # for this user alone
        try:
            with os.fdopen(opened, "wb") as file:
                file.write(raw)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sweep(path)


def _sweep(path: Path) -> None:
    """Delete those used longest ago as far as all together go beyond the cap, but not the one at `path`."""
    total = path.stat().st_size
    others = [(other.stat().st_mtime, other) for other in path.parent.glob(f"*{SUFFIX}") if other != path]
    for _, other in sorted(others, reverse=True):
        total += other.stat().st_size
        if total > CAP_BYTES:
            other.unlink(missing_ok=True)


def _place(work: Work, stage: Stage) -> Path:
    return settings.cache_dir() / "encodings" / f"{_key(work, stage)}{SUFFIX}"


def _key(work: Work, stage: Stage) -> str:
    """Of what a stage gives that goes by words alone: the words, the files that it reads, and who computes how."""
    model, request, under = work.model, work.request, tuple(f"{part}/" for part in stage.parts)
    words: list[object] = [request.prompt, request.negative if request.guided else None]
    words += [request.clip_skip, request.emphasis, turns_of(request).order]  # the latter goes by the steps, too
    files = sorted(item for item in stamps_of(model).items() if item[0].startswith(under))
    parts = [model.parts[name] for name in stage.parts]
    networks = [(part.class_name, part.config, [file.header_sha256 for file in part.files]) for part in parts]
    changes = [
        (part.name, name, [(one.kind, one.scale, one.weight, _places(one)) for one in adapters])
        for part in parts
        for name, adapters in sorted(part.adapters.items())
    ]
    computed = [work.device.name, work.dtype_name, machine.torch_version(), *machine.cpu_vector_flags()]
    computed.append(f"{torch.get_num_threads()} threads")  # which may round otherwise
    facts = [LAYOUT, __version__, model.family, sorted(model.said.items()), stage.name, words, files, networks]
    facts += [changes, computed]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _places(adapter: Adapter) -> list[tuple[str, str, str]]:
    """Which tensors of which files the adapter is made of, by their roles."""
    return sorted((role, str(origin.path), origin.stored) for role, origin in adapter.tensors.items())


def _to_bytes(given: Given) -> bytes:
    tensors = {
        f"{name}/{key}": one.to("cpu").contiguous().clone()
        for name, some in given.state.items()
        for key, one in some.items()
    }
    tensors[ABOUT] = _bytes(json.dumps(given.notices).encode())
    tensors[DIGEST] = _bytes(_digest(tensors))
    raw: bytes = save(tensors)
    return raw


def _from_bytes(raw: bytes) -> Given | None:
    tensors = load(raw)
    if bytes(tensors.pop(DIGEST).tolist()) != _digest(tensors):
        return None
    notices = json.loads(bytes(tensors.pop(ABOUT).tolist()))
    state: State = {}
    for name, one in tensors.items():
        group, _, key = name.partition("/")
        state.setdefault(group, {})[key] = one
    whole = all(map(is_finite, tensors.values()))
    return Given(state, tuple(map(str, notices))) if whole else None


def _digest(tensors: dict[str, torch.Tensor]) -> bytes:
    every = hashlib.sha256()
    for name, one in sorted(tensors.items()):
        every.update(f"{name} {one.dtype} {tuple(one.shape)}\n".encode())
        every.update(one.reshape(-1).view(torch.uint8).numpy().data)
    return every.digest()


def _bytes(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)
