"""Synthetic models in the user's cache: where they live, when one is whole, and the files of text they need.

A synthetic model has the real architecture and seeded random weights: everything but the picture is as
with the real one, and no download is needed to measure memory and speed. The weights themselves need
torch, so the worker makes them (engine/synthesize.py).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from sdcli import settings
from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.models.configs import CONFIG_FILES, ComponentName
from sdcli.models.folder import WEIGHT_STEMS
from sdcli.models.header import sample_sha256

SYNTHETIC = "synthetic:"
MANIFEST = "manifest.json"
LAYOUT = 1
"""Raised when the same seed would give other weights, so that an older cache is made anew."""

DEAD_S = 24 * 3600.0
"""A half-made model that nothing was written to for so long is nobody's."""


def find_synthetic(ref: str, make: Callable[[str, Path], None]) -> tuple[Path, str]:
    """The folder and digest of a synthetic model: verified when it is there, else made in one piece.

    Raises BadRequest for an unknown name and SdcliError when it cannot be made.
    """
    name = ref.removeprefix(SYNTHETIC)
    if name not in settings.config_names("models"):
        known = ", ".join(SYNTHETIC + known for known in settings.config_names("models"))
        raise BadRequest(f"no synthetic model {echo(ref)}: there is {known}")
    folder = settings.cache_dir() / "synthetic" / f"{name}-{LAYOUT}"
    digest = _verified(folder)
    if digest is None:
        digest = _make_whole(name, folder, make)
    return folder, digest


def _make_whole(name: str, folder: Path, make: Callable[[str, Path], None]) -> str:
    """Make the model beside its place and move it in: what carries the name is always complete. Its digest."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        half = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise SdcliError(
            f"cannot write in {echo(folder.parent)}: {error.strerror}; set SDCLI_CACHE to a folder that can be written"
        ) from error
    try:
        make(name, half)
        digest = _verified(half)
        if digest is None:
            raise SdcliError(f"the model made in {echo(folder.parent)} does not verify: check the disk")
        _move_in(half, folder)
        return digest
    except OSError as error:
        faster = _verified(folder)  # another run, which made the same
        if faster is None:
            raise SdcliError(
                f"cannot make the model {echo(SYNTHETIC + name)} in {echo(folder)}: {error.strerror or echo(error)}"
            ) from error
        return faster
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _move_in(half: Path, folder: Path) -> None:
    """Give `half` its name, in place of a damaged model; a whole one is never moved, someone may be reading it."""
    stale = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
    try:
        with suppress(FileNotFoundError):
            if _verified(folder) is None:
                os.rename(folder, stale / "model")
        os.rename(half, folder)
    finally:
        shutil.rmtree(stale, ignore_errors=True)


def _sweep(home: Path) -> None:
    """Delete what killed runs left half-made: gigabytes that nothing was added to for a day."""
    for left in home.glob(".*-*"):
        with suppress(OSError):
            newest = max(path.stat(follow_symlinks=False).st_mtime for path in (left, *left.rglob("*")))
            if left.is_dir() and time.time() - newest > DEAD_S:
                shutil.rmtree(left, ignore_errors=True)


def _verified(folder: Path) -> str | None:
    """The model's digest if every file has the size and the sampled blocks of its making, else None."""
    try:
        if not (folder / MANIFEST).is_file():  # a pipe would be waited for
            return None
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        for name, entry in manifest["files"].items():
            path = folder / name
            if (
                not path.is_file()
                or path.stat().st_size != entry["size"]
                or sample_sha256(path) != entry["sample_sha256"]
            ):
                return None
        return str(manifest["sha256"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def write_texts(config: dict[str, Any], folder: Path) -> None:
    """Write the configs and the tokenizer of a synthetic model, in diffusers layout."""
    for component, file in CONFIG_FILES.items():
        home = folder / component
        home.mkdir()
        (home / file).write_text(json.dumps(config[component], indent=2) + "\n", "utf-8")
    vocabulary, merges = tokenizer_files(config["text_encoder"]["vocab_size"])
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    index: dict[str, object] = {
        "_class_name": "StableDiffusionPipeline",
        **{
            component: ["transformers" if component in ("text_encoder", "tokenizer") else "diffusers", _class(table)]
            for component, table in config.items()
            if component in CONFIG_FILES
        },
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _class(table: dict[str, Any]) -> str:
    return str(table.get("_class_name") or table.get("tokenizer_class") or table["architectures"][0])


def weight_path(folder: Path, component: ComponentName) -> Path:
    """Where a component's weights go."""
    return folder / component / f"{WEIGHT_STEMS[component]}.safetensors"


def tokenizer_files(vocab_size: int) -> tuple[dict[str, int], list[str]]:
    """A byte-level BPE vocabulary laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, two marks.

    The merges join the commonest shape of words, lower-case letters, in twos, threes and fours, so that any
    text can be tokenized and the vocabulary has exactly `vocab_size` entries.
    """
    alphabet = list(_byte_alphabet())
    entries = alphabet + [letter + "</w>" for letter in alphabet]
    room = vocab_size - len(entries) - 2
    merges: list[str] = []
    for left, right in chain(_pairs(2), _pairs(3), _pairs(4)):
        for end in ("", "</w>"):
            if len(merges) < room:
                merges.append(f"{left} {right}{end}")
                entries.append(f"{left}{right}{end}")
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(entries)}, merges


def _pairs(length: int) -> Iterator[tuple[str, str]]:
    """Every word of `length` letters as (all but the last, the last)."""
    return (("".join(letters[:-1]), letters[-1]) for letters in product(ascii_lowercase, repeat=length))


def _byte_alphabet() -> Iterator[str]:
    """The 256 visible characters that stand for bytes in GPT-2's byte-level BPE, which CLIP uses."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    yield from map(chr, visible)
    yield from (chr(256 + index) for index in range(256 - len(visible)))
