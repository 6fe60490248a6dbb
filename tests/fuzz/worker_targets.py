"""The parsers of foreign data that run in the worker, with torch."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Origin
from sdcli.engine.checkpoint import Checkpoint
from sdcli.engine.encodings import ABOUT, DIGEST, _digest, _from_bytes
from sdcli.engine.schedulers import build_scheduler
from sdcli.families.contract import FLOAT8
from sdcli.families.sd.text_encoder import tokenize
from sdcli.families.single_file import _scale
from sdcli.models.header import read_header, sampled_sha256
from sdcli.models.opened import open_model
from sdcli.weights.opaque import description, raw_bytes
from sdcli.weights.packed import can_map, packing_of
from sdcli.weights.prepared import INDEX, WEIGHTS, open_copy
from sdcli.weights.source import Source
from tests.fuzz import seeds
from tests.fuzz.harness import Run, Target
from tests.fuzz.targets import write_tokenizer
from tests.laid_out import Shapes, laid_out

STEPS = 4


def _checkpoint(place: Path) -> Run:
    """What a picture goes on from."""
    scheduler_of = open_model("demo", seeds.DEMO).parts["scheduler"]

    def run(data: bytes, place: Path) -> object:
        kept = Checkpoint.from_bytes(data)
        kept.require_sound(torch.Size((1, 4, 8, 8)), STEPS)
        scheduler = build_scheduler(scheduler_of, STEPS)
        return kept.restore(torch.Generator(), scheduler)

    return run


def _checkpoints() -> list[bytes]:
    scheduler = build_scheduler(open_model("demo", seeds.DEMO).parts["scheduler"], STEPS)
    latents = torch.zeros(1, 4, 8, 8)
    return [Checkpoint.take(0, step, STEPS, latents, torch.Generator(), scheduler).to_bytes() for step in (0, 2, STEPS)]


def _encodings(place: Path) -> Run:
    """What is kept of an encoded prompt; its digest is right half of the time."""

    def run(data: bytes, place: Path) -> object:
        with suppress(OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            _from_bytes(data)
            tensors = load(data)
            tensors.pop(DIGEST, None)
            tensors[DIGEST] = torch.frombuffer(bytearray(_digest(tensors)), dtype=torch.uint8)
            return _from_bytes(save(tensors))
        return None

    return run


def _kept_encodings() -> list[bytes]:
    tensors = {"text/tokens": torch.zeros(1, 7, 8), ABOUT: torch.frombuffer(bytearray(b'["x"]'), dtype=torch.uint8)}
    tensors[DIGEST] = torch.frombuffer(bytearray(_digest(tensors)), dtype=torch.uint8)
    return [save(tensors)]


def _tokenizer(place: Path) -> Run:
    """The library's own parser, behind our looks at the files."""
    part = open_model("demo", seeds.DEMO).parts["tokenizer"]

    def run(data: bytes, place: Path) -> object:
        write_tokenizer(data, place)
        return tokenize(replace(part, folder=place), 77, ["a cat 🦊", ""])

    return run


def _prepared(place: Path) -> Run:
    """The index of a prepared copy, with a digest that is right: whatever it says lies within the file.

    Descriptions are the library's own, which believes them; a copy of another user's is never opened.
    """
    described, weights = _copy()
    sound = described["weights"]["a"][0]["description"]
    (place / WEIGHTS).write_bytes(weights)
    with (place / WEIGHTS).open("rb") as file:
        sampled = sampled_sha256(file)

    def run(data: bytes, place: Path) -> object:
        try:
            index: Any = json.loads(data)
            if isinstance(index, dict):
                entries = json.dumps(index.get("weights"))
                index["digest"] = hashlib.sha256((sampled + entries).encode()).hexdigest()
                data = json.dumps(index).encode()
        except (ValueError, RecursionError, UnicodeEncodeError):
            pass
        (place / INDEX).write_bytes(data)
        copy = open_copy(place)
        if copy is None:
            return None
        begin = copy._address
        for name in copy._entries:
            for address, nbytes in copy.places(name):
                assert begin <= address <= address + nbytes <= begin + len(weights)
            if all(entry["description"] == sound for entry in copy._entries[name]):
                with suppress(ValueError, RuntimeError):
                    copy.weights(name)
        return copy

    return run


def _copy() -> tuple[dict[str, Any], bytes]:
    """The index of a copy of one layer, and its weights."""
    layer = torch.nn.Linear(64, 32).requires_grad_(False)
    kind = packing_of(layer, CpuDevice(), torch.float32)
    assert kind is not None
    (packed,) = kind.pack(layer, layer.weight)
    raw = bytes(raw_bytes(packed))
    told = {"shape": list(packed.shape), "dtype": str(packed.dtype), "description": description(packed).hex()}
    return {"digest": "", "weights": {"a": [{"begin": 0, "nbytes": len(raw), **told}]}}, raw + bytes(-len(raw) % 4096)


def _scaled(place: Path) -> Run:
    """A weight of eight bits with its scale, filled into what a layer has ready."""
    part = replace(open_model("demo", seeds.DEMO).parts["unet"], adapters={}, adapter_files=())

    def run(data: bytes, place: Path) -> object:
        path = place / "w.safetensors"
        path.write_bytes(data)
        file = read_header(path)
        for name, info in file.tensors.items():
            scale = _scale(file, name, info)
            if info.dtype in FLOAT8 and info.numel < 2**20:
                one = replace(part, files=(file,), tensors={name: Origin(path, name, info, None, scale, False, False)})
                with Source(one) as source:
                    source.stored(name, info.shape).fill(torch.empty(info.shape))
        return None

    return run


def _scales() -> list[bytes]:
    shapes: Shapes = {"l.weight": ("F8_E4M3", [2, 4]), "l.scale_weight": ("F32", [])}
    other: Shapes = {"l.weight": ("F8_E5M2", [2, 4]), "l.weight_scale": ("F32", [1])}
    return [laid_out(one, None, bytes(range(0, 80, 10)) + b"\0\0\x80\x3f") for one in (shapes, other)]


WORKER = (
    Target("checkpoint", _checkpoint, _checkpoints, "header", 400),
    Target("encodings", _encodings, _kept_encodings, "header", 300),
    Target("float8", _scaled, _scales, "header", 300),
    Target("tokenizer", _tokenizer, seeds.vocabularies, "bytes", 200),
    *(
        (Target("prepared-copy", _prepared, lambda: [json.dumps(_copy()[0]).encode()], "json", 400),)
        if can_map()
        else ()
    ),
)
