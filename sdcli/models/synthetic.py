"""Synthetic models in the user's cache: where they live, when one is whole, and the files of text they need.

A synthetic model has the real architecture and seeded random weights: everything but the picture is as
with the real one, and no download is needed to measure memory and speed. The weights themselves need
torch, so the worker makes them (engine/synthesize.py).

Its outline is the same without numbers: files of the right size that hold headers and nothing else, which take no room.
What a picture takes is known from that, so that gigabytes are written for one that fits alone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdcli import settings
from sdcli.domain import Model
from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.families.contract import Family, Part
from sdcli.families.registry import recognise
from sdcli.models.configs import class_name
from sdcli.models.header import sample_sha256
from sdcli.models.index import INDEX_FILE

SYNTHETIC = "synthetic:"
MANIFEST = "manifest.json"
LAYOUT = 1
"""Raised when the same seed would give other weights, so that an older cache is made anew."""

Make = Callable[[str, Path], None]
"""Makes the named model, or its outline, in an empty folder."""

DEAD_S = 24 * 3600.0
"""A half-made model that nothing was written to for so long is nobody's."""


def find_synthetic(ref: str, make: Make) -> tuple[Path, str]:
    """The folder and digest of a synthetic model: verified when it is there, else made in one piece.

    Raises BadRequest for an unknown name and SdcliError when it cannot be made.
    """
    name = _known(ref)
    folder = made_folder(name)
    digest = _verified(folder)
    if digest is None:
        digest = _make_whole(name, folder, make)
        shutil.rmtree(outline_folder(name), ignore_errors=True)
    return folder, digest


def find_outlined(ref: str, outline: Make) -> tuple[Path, str | None]:
    """The same of one that is there; else the folder of its outline, made in one piece, which has no digest."""
    name = _known(ref)
    folder = made_folder(name)
    digest = _verified(folder)
    if digest is None:
        folder = outline_folder(name)
        if _verified(folder) is None:
            _make_whole(name, folder, outline)
    return folder, digest


def is_outline(model: Model) -> bool:
    """Whether it is a synthetic model without its numbers."""
    name = model.ref.removeprefix(SYNTHETIC)
    return model.ref.startswith(SYNTHETIC) and model.path == outline_folder(name).resolve()


def made_folder(name: str) -> Path:
    """Where a synthetic model lies, or will."""
    return settings.cache_dir() / "synthetic" / f"{name}-{LAYOUT}"


def outline_folder(name: str) -> Path:
    """Where its outline lies, or will, as long as the model itself does not."""
    return settings.cache_dir() / "synthetic" / f"{name}-{LAYOUT}-outline"


def _known(ref: str) -> str:
    """The name of a synthetic model."""
    name = ref.removeprefix(SYNTHETIC)
    if name not in settings.config_names("models"):
        known = ", ".join(SYNTHETIC + known for known in settings.config_names("models"))
        raise BadRequest(f"no synthetic model {echo(ref)}: there is {known}")
    return name


def made_names() -> list[str]:
    """The synthetic models that are there."""
    return [name for name in settings.config_names("models") if (made_folder(name) / MANIFEST).is_file()]


def _make_whole(name: str, folder: Path, make: Make) -> str:
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


def family_of_configs(config: Mapping[str, Any]) -> Family:
    """The family of a model that does not exist yet, from the configs of its parts by their names."""
    return recognise(config.__contains__, kind=lambda part: config[part.name].get("_class_name"))


def write_texts(config: Mapping[str, Any], folder: Path) -> None:
    """Write the configs and the other texts of a synthetic model, in diffusers layout."""
    family = family_of_configs(config)
    parts = {part.name: part for part in family.parts}
    for part in family.parts:
        home = folder / part.name
        home.mkdir()
        (home / part.config_file).write_text(json.dumps(config[part.name], indent=2) + "\n", "utf-8")
    for name, text in family.texts(config).items():
        (folder / name).write_text(text, "utf-8")
    index: dict[str, object] = {
        "_class_name": family.pipelines[0],
        **{
            name: [parts[name].library, class_name(parts[name], table, Path(name))]
            for name, table in config.items()
            if name in parts
        },
        **family.index_extras,
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def weight_path(folder: Path, part: Part) -> Path:
    """Where a part's weights go."""
    return folder / part.name / f"{part.stem}.safetensors"
