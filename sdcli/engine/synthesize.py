"""Make a synthetic model: the real architecture, seeded random weights, written tensor by tensor.

The distributions are those of an untrained model, with norms and biases a little off their usual 1 and 0, so
that a weight which is dropped, swapped or not applied changes the picture.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Part
from sdcli.messages import Finished, Message, Progress
from sdcli.models.configs import checked_config, class_name
from sdcli.models.header import sample_sha256
from sdcli.models.synthetic import MANIFEST, family_of_configs, weight_path, write_texts
from sdcli.settings import read_config
from sdcli.units import GIB

HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Types that weights may be written in; else it is FP32."""

LEFT_FREE_BYTES = 1 * GIB
"""Of the disk, for others."""

PIECE = 2**22
"""Numbers made at a time: 16 MiB in FP32, whatever the size of the tensor."""


def synthesize(name: str, folder: Path, outline: bool = False) -> Iterator[Message]:
    """Make the model `name` of configs/models in the empty `folder`, or its `outline` alone. Yields its progress."""
    config = read_config("models", name)
    if outline:
        write_outline(config, folder)
    else:
        yield from write_model(config, folder)
    yield Finished()


def write_outline(config: dict[str, Any], folder: Path) -> None:
    """Make a model whose files have headers and no numbers: they read as zeros, and take no room on disk."""
    modules, dtype = _empty_modules(config), config.get("dtype", "F16")
    write_texts(config, folder)
    for part, module in modules.items():
        with weight_path(folder, part).open("wb") as file:
            _write_header(file, module, dtype)
            file.truncate(file.tell() + sum(_nbytes(tensor, dtype) for _, tensor in _stored(module)))
    _write_manifest(folder, sample_sha256)


def write_model(config: dict[str, Any], folder: Path) -> Iterator[Progress]:
    """Make a model from a table of its parts' configs and a seed, in the empty `folder`."""
    modules, dtype = _empty_modules(config), config.get("dtype", "F16")
    total = sum(_nbytes(t, dtype) for module in modules.values() for _, t in _stored(module))
    done = 0
    try:
        _require_room(folder, total)
        yield Progress(0, total)
        write_texts(config, folder)
        for part, module in modules.items():
            with weight_path(folder, part).open("wb") as file:
                for written in _write_weights(file, module, f"{config['seed']}/{part.name}", dtype):
                    done += written
                    yield Progress(done, total)
        _write_manifest(folder, _sha256)
    except OSError as error:
        raise SdcliError(
            f"cannot write the model in {echo(folder.parent)}: {error.strerror}; it takes {total / 1e9:.1f} GB,"
            " set SDCLI_CACHE to a folder with room"
        ) from error


def _empty_modules(config: dict[str, Any]) -> dict[Part, nn.Module]:
    """The networks of the model's family, without memory."""
    family = family_of_configs(config)
    network = import_module(family.network)
    modules = {}
    for part in family.parts:
        if part.stem is not None:
            home, table = Path(part.name), config[part.name]
            settings = checked_config(part, table, home)
            kind = class_name(part, table, home)
            modules[part] = network.build(Component(part.name, kind, settings, home, schema=part.schema))
    return modules


def _require_room(folder: Path, total: int) -> None:
    """Raise SdcliError where the disk would be full afterwards."""
    free = shutil.disk_usage(folder).free
    if free < total + LEFT_FREE_BYTES:
        raise SdcliError(
            f"the model takes {total / 1e9:.1f} GB, and {echo(folder.parent)} has {free / 1e9:.1f} GB free:"
            " make room, or set SDCLI_CACHE to a folder with more"
        )


def _stored(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of its file: parameters, and statistics that were gathered in training."""
    yield from module.named_parameters()
    known = dict(module.named_buffers())
    yield from (
        (name, known[name]) for name in module.state_dict() if name in known and known[name].is_floating_point()
    )


def _nbytes(tensor: torch.Tensor, dtype: str) -> int:
    """In a file of this type; statistics are in FP32."""
    return tensor.numel() * (2 if isinstance(tensor, nn.Parameter) and dtype in HALVES else 4)


def _write_header(file: BinaryIO, module: nn.Module, dtype: str) -> None:
    """Begin one safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in _stored(module):
        end = at + _nbytes(tensor, dtype)
        stored_as = dtype if isinstance(tensor, nn.Parameter) else "F32"
        header[name] = {"dtype": stored_as, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)


def _write_weights(file: BinaryIO, module: nn.Module, seed: str, dtype: str) -> Iterator[int]:
    """Write one safetensors file; yields the bytes of each piece written."""
    owners = dict(module.named_modules())
    _write_header(file, module, dtype)
    for name, tensor in _stored(module):
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        mean, deviation = _distribution(owners[name.rpartition(".")[0]], name, tensor)
        kind = HALVES.get(dtype, torch.float32) if isinstance(tensor, nn.Parameter) else torch.float32
        for begin in range(0, tensor.numel(), PIECE):
            piece = torch.randn(min(PIECE, tensor.numel() - begin), generator=generator)
            raw = piece.mul_(deviation).add_(mean).to(kind).view(torch.uint8).numpy().tobytes()
            file.write(raw)
            yield len(raw)


def _distribution(owner: nn.Module, name: str, parameter: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one tensor's numbers.

    Matrices keep the deviation of torch's own initialisation, U(-1/sqrt(fan in), 1/sqrt(fan in)).
    """
    if isinstance(owner, nn.BatchNorm2d):
        return (1.0, 0.1) if name.endswith("var") else (0.0, 0.1)
    if isinstance(owner, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    if parameter.dim() == 1 and name.endswith("weight"):  # norms that are no class of torch's
        return 1.0, 0.1
    if isinstance(owner, nn.Embedding):
        return 0.0, 0.02
    if name.endswith("bias"):
        return 0.0, 0.02
    return 0.0, 1 / math.sqrt(3 * parameter[0].numel())


def _write_manifest(folder: Path, digest_of: Callable[[Path], str]) -> None:
    """Record what a whole model looks like: size and digests of every file, and one digest of all."""
    files, every = {}, hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        digest = digest_of(path)
        name = path.relative_to(folder).as_posix()
        every.update(f"{digest}  {name}\n".encode())
        files[name] = {"size": path.stat().st_size, "sha256": digest, "sample_sha256": sample_sha256(path)}
    manifest = {"sha256": every.hexdigest(), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
