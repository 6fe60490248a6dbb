"""Checking models on this disk, and removing them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdcli.app.hub_lock import the_only_one
from sdcli.app.on_disk import size_of
from sdcli.app.pull import Show
from sdcli.app.runs import models_in_use
from sdcli.errors import BadRequest, ModelMissing, SdcliError, echo
from sdcli.models.blobs import blob_of, is_digest, is_whole
from sdcli.models.hub_ids import HubRef, find_in_cache, parse_hub_ref
from sdcli.models.reference import resolve_model
from sdcli.models.synthetic import SYNTHETIC, made_folder, made_names
from sdcli.weights.copies import copies_of
from sdcli.weights.copies import remove as remove_copy


@dataclass(frozen=True, slots=True)
class Checked:
    """How a model was checked: `files` against digests that the Hub gave, of them the `wrong` ones."""

    ref: str
    files: int
    size_bytes: int
    wrong: tuple[str, ...]

    @property
    def by_digest(self) -> bool:
        """Whether there were digests to go by, or its structure alone was looked at."""
        return self.files > 0


def verify(ref: str, show: Show) -> Checked:
    """Read all of a model in the Hub's cache and compare digests; of any other, check headers, sizes and configs.

    Raises SdcliError where the structure is wrong.
    """
    path = _cached_path(ref)
    if path is None:
        model = resolve_model(ref, _no_making)
        return Checked(ref, 0, size_of(model.path), ())
    files = [(name, blob_of(name)) for name in _files_in(path)]
    blobs = {name: blob for name, blob in files if is_digest(blob.name) and blob.parent.name == "blobs"}
    gone = [name for name, blob in files if not blob.is_file()]
    sizes = {name: blob.stat().st_size for name, blob in blobs.items() if name not in gone}
    done, total = 0, sum(sizes.values())

    def moved(count: int) -> None:
        nonlocal done
        done += count
        show(done, total)

    wrong = [name for name, size in sizes.items() if not is_whole(blobs[name], blobs[name].name, size, moved)]
    if not wrong and not gone:
        resolve_model(str(path), _no_making)
    named = tuple(sorted(name.relative_to(path).as_posix() if name != path else name.name for name in (*wrong, *gone)))
    return Checked(ref, len(sizes), total, named)


def _cached_path(ref: str) -> Path | None:
    named = None if os.path.lexists(ref) else parse_hub_ref(ref)
    found = find_in_cache(named) if named else None
    return found[0] if found else None


def _files_in(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)


def _no_making(name: str, folder: Path) -> None:
    raise SdcliError(f"{echo(SYNTHETIC + name)} is not there, or damaged: the next run makes it anew")


@dataclass(frozen=True, slots=True)
class Removal:
    """What would go, and how much room it frees; with it go `copies`, the prepared ones of its weights."""

    path: Path
    size_bytes: int
    take_away: Callable[[], None]
    copies: Mapping[Path, int]

    def carry_out(self) -> int:
        """Remove it; returns the bytes of copies that went: one that is in use stays."""
        self.take_away()
        for copy in self.copies:
            remove_copy(copy)
        return sum(size_bytes for copy, size_bytes in self.copies.items() if not copy.exists())


def removal_of(ref: str) -> Removal:
    """What removing a model means. Raises BadRequest for one that is not ours to remove, ModelMissing for none."""
    if ref.startswith(SYNTHETIC):
        name = ref.removeprefix(SYNTHETIC)
        if name not in made_names():
            raise ModelMissing(f"no model {echo(ref)} on this disk: sdcli models list shows what there is")
        folder = made_folder(name)
        return Removal(folder, size_of(folder), lambda: _remove_folder(folder), copies_of(folder))
    named = parse_hub_ref(ref)
    if named is None or named.file or (os.path.lexists(ref) and not named.top.is_dir()):
        raise BadRequest(f"{echo(ref)} is not ours to remove: give org/name of the Hub's cache, or synthetic:NAME")
    if not named.top.is_dir():
        raise ModelMissing(f"no model {echo(ref)} in the Hub's cache: sdcli models list shows what there is")
    if named.revision is None:
        return Removal(
            named.top, size_of(named.top / "blobs"), lambda: _remove_cached(named, None), copies_of(named.top)
        )
    found = find_in_cache(named)
    if found is None:
        raise ModelMissing(f"no model {echo(ref)} in the Hub's cache: sdcli models list shows what there is")
    snapshots = named.top / "snapshots"
    snapshot = snapshots / found[0].relative_to(snapshots).parts[0]
    return Removal(snapshot, size_of(snapshot), lambda: _remove_cached(named, snapshot), copies_of(snapshot))


def _remove_cached(ref: HubRef, snapshot: Path | None) -> None:
    """Remove a snapshot with the blobs that no other one has, or with the last of them the whole folder."""
    with the_only_one(ref, None):
        _require_idle(ref.top)
        others = [path for path in (ref.top / "snapshots").glob("*") if snapshot and path != snapshot]
        if snapshot is None or not others:
            _remove(ref.top)
            return
        kept = {blob_of(path) for other in others for path in _files_in(other)}
        blobs = {blob_of(path) for path in _files_in(snapshot)} - kept
        for name in (ref.top / "refs").glob("*"):
            if name.is_file() and name.read_text("ascii", "replace").strip() == snapshot.name:
                name.unlink()
        _remove(snapshot)
        for blob in blobs:
            if blob.parent == ref.top / "blobs":
                blob.unlink(missing_ok=True)


def _remove_folder(folder: Path) -> None:
    _require_idle(folder)
    _remove(folder)


def _require_idle(path: Path) -> None:
    used = next((used for used in models_in_use() if used.is_relative_to(path.resolve())), None)
    if used is not None:
        raise SdcliError(f"a run draws with {echo(used)} just now: wait for it, or end it")


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise SdcliError(f"cannot remove {echo(folder)}: {error.strerror}; check its permissions") from error
