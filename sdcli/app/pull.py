"""A model from the Hub into its cache: what sdcli needs of it, checked, and there all at once.

Files go to blobs/ first. The snapshot is linked when all of them are whole, and refs/main is set last, so that a run
finds the old model or the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdcli import interrupts
from sdcli.app.asked import Note, Tell
from sdcli.app.hub_lock import the_only_one
from sdcli.errors import BadRequest, Interrupted, SdcliError, echo
from sdcli.families.registry import recognise
from sdcli.models.blobs import is_whole
from sdcli.models.configs import read_json
from sdcli.models.hub_ids import COMMIT, HubRef, hub_cache, parse_hub_ref
from sdcli.models.index import INDEX_FILE
from sdcli.models.wanted import has_folder, has_parts, wanted_file, wanted_of
from sdcli.units import MIB, format_size

if TYPE_CHECKING:
    from sdcli.app.hub import Listing, RemoteFile

ROOM_BYTES = 16 * MIB
"""Left free beside what is fetched."""

Show = Callable[[int, int], None]
"""Shows how many of how many bytes are there."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """What is there now: how `--model` names it, where it lies, its size, and how much of it came just now."""

    ref: str
    path: Path
    size_bytes: int
    fetched_bytes: int


def pull(repo: str, file: str | None, tell: Tell, show: Show) -> Pulled:
    """Fetch a model. Raises BadRequest for a name that is none, ModelMissing if it cannot be had, SdcliError."""
    ref = parse_hub_ref(repo)
    if ref is None or (file and ref.file):
        raise BadRequest(f"{echo(repo)} is no model's name on the Hub: give ORG/NAME, or ORG/NAME@COMMIT")
    ref = HubRef(ref.repo, ref.revision, file or ref.file)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else it asks the Hub for more than we do
    from sdcli.app import hub, hub_errors  # here, because they weigh 20 MiB

    if hub_errors.is_offline():
        raise hub_errors.offline(ref)
    with the_only_one(ref, tell):
        try:
            return _Pull(ref, hub.list_files(ref, tell), tell, show).run()
        except Interrupted as error:
            raise Interrupted(error.signum, "what came is kept, the same command goes on with it") from error


class _Pull:
    """One pull, of the files that a repository has at a commit."""

    def __init__(self, ref: HubRef, listing: Listing, tell: Tell, show: Show) -> None:
        self._ref, self._commit, self._files = ref, listing.commit, listing.files
        self._tell, self._show = tell, show
        self._done = self._total = self._fetched_bytes = 0

    def run(self) -> Pulled:
        """Fetch what is needed, then link it."""
        try:
            files = self._wanted()
            blobs = {file.blob: file for file in files}
            self._total = sum(file.size_bytes for file in blobs.values())
            missing = [file for file in blobs.values() if not self._has(file)]
            self._require_room(len(files), sum(file.size_bytes for file in missing))
            for file in missing:
                self._fetch(file)
            for file in files:
                self._link(file)
            self._name_it()
        except OSError as error:
            what = f"cannot write in {echo(hub_cache())}: {error.strerror or echo(error)}"
            raise SdcliError(f"{what}; set HF_HUB_CACHE to a folder that can be written") from error
        alone = files[0].name if not has_parts(self._files) or self._ref.file else None
        pinned = self._ref.revision and (self._commit if COMMIT.fullmatch(self._ref.revision) else self._ref.revision)
        path = self._snapshot / (alone or "")
        return Pulled(str(HubRef(self._ref.repo, pinned or None, alone)), path, self._total, self._fetched_bytes)

    @property
    def _snapshot(self) -> Path:
        return self._ref.top / "snapshots" / self._commit

    def _wanted(self) -> list[RemoteFile]:
        sizes = {file.name: file.size_bytes for file in self._files.values()}
        if self._ref.file or not has_parts(sizes):
            return [self._files[wanted_file(self._ref.repo, self._ref.file, sizes)]]
        pipeline = None
        if index := self._files.get(INDEX_FILE):
            if not self._has(index):
                self._fetch(index)
            pipeline = read_json(self._blob(index)).get("_class_name")
        family = recognise(lambda part: has_folder(sizes, part), pipeline, Path(f"{self._ref.repo}/{INDEX_FILE}"))
        self._done = 0
        return [self._files[name] for name in wanted_of(self._ref.repo, family, sizes)]

    def _blob(self, file: RemoteFile) -> Path:
        return self._ref.top / "blobs" / file.blob

    def _has(self, file: RemoteFile) -> bool:
        """Whether it is there and whole; what is there and damaged goes."""
        blob, before = self._blob(file), self._done
        if is_whole(blob, file.blob, file.size_bytes, self._moved):
            return True
        self._done = before
        if os.path.lexists(blob):
            self._tell(Note(f"{echo(file.name)} is damaged in the cache: it is fetched again", "warning"))
            blob.unlink()
        return False

    def _require_room(self, count: int, fetch_bytes: int) -> None:
        here_bytes = self._total - fetch_bytes - self._fetched_bytes
        here = "all" if here_bytes == self._total else format_size(here_bytes)
        there = f", {here} of it here already" if here_bytes else ""
        files = "1 file" if count == 1 else f"{count} files"
        self._tell(Note(f"{self._ref.repo} at {self._commit[:8]}: {files}, {format_size(self._total)}{there}"))
        free_bytes = shutil.disk_usage(hub_cache()).free
        if fetch_bytes and fetch_bytes + ROOM_BYTES > free_bytes:
            what = f"{self._ref.repo} needs {format_size(fetch_bytes)}, and {echo(hub_cache())} has room for"
            raise SdcliError(f"{what} {format_size(free_bytes)}: make room, or set HF_HUB_CACHE to another disk")

    def _fetch(self, file: RemoteFile) -> None:
        from sdcli.app.transfer import Transfer  # here, because it weighs 20 MiB

        Transfer(self._ref, self._commit, file, self._blob(file), self._tell, self._moved).run()
        self._fetched_bytes += file.size_bytes

    def _moved(self, count: int) -> None:
        interrupts.check()
        self._done += count
        if self._total:
            self._show(self._done, self._total)

    def _link(self, file: RemoteFile) -> None:
        """Put a file in its place in the snapshot."""
        blob, place = self._blob(file), self._snapshot / file.name
        if place.exists() and place.samefile(blob):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            try:
                temporary.symlink_to(os.path.relpath(blob, place.parent))
            except OSError:  # a system on which not everybody may make one
                shutil.copyfile(blob, temporary)
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)

    def _name_it(self) -> None:
        """Have the branch or tag that was asked for name this commit."""
        revision = self._ref.revision or "main"
        if COMMIT.fullmatch(revision) or self._commit.startswith(revision):
            return
        refs = self._ref.top / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        temporary = refs / f".{revision}.{os.getpid()}.tmp"
        temporary.write_text(self._commit, "ascii")
        os.replace(temporary, refs / revision)
