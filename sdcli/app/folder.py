"""What one run must not lose, in a folder of its own: the run file, checkpoints, latents that wait to be decoded.

Each file is whole or not there. The run file, latents and marks of pictures that are saved outlive a loss of power; for
a checkpoint no step waits for a disk: one that is damaged then is told by its digest. Where nothing can be written all
stays in memory, and no run fails for that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdcli.app.own_files import read_own, sealed, unsealed, write_own
from sdcli.app.runs import RUN_FILE, new_folder, outlasts, sign, take_lock
from sdcli.domain import DtypeName
from sdcli.errors import SdcliError, echo
from sdcli.units import GIB, KIB

CHECKPOINT_S = 0.25
"""So often at most a checkpoint is written: of a small model's steps, which take milliseconds, a few are lost."""

BLOB_BYTES = GIB
"""Of a file of a run's folder at most: larger than any picture's checkpoint."""

RETRY = "retry.json"
"""That steps go on in fp32, and what types the pictures were denoised in before."""

MARK_BYTES = 64 * KIB

_NUMBERED = re.compile(r"(checkpoint|latents|unplaced|placing|saved)-(\d{1,4})")


class RunFolder:
    """`checkpoints` are the last ones of pictures that are begun, `latents` those of pictures that are denoised.

    Both go by the pictures' numbers, and so do `saved`, the pictures that are where they should be, with their paths as
    far as known, and `placing`, those of a run before this one that was ended while it saved them. The folder is made
    when first something is written.
    """

    def __init__(self) -> None:
        self.checkpoints = Kept(self, "checkpoint", CHECKPOINT_S)
        self.latents = Kept(self, "latents", lasting=True)
        self.saved: dict[int, str | None] = {}
        self.placing: set[int] = set()
        self.path: Path | None = None
        self.left: str | None = None
        """The name of the folder of a run that has ended and may be gone on with."""
        self._lock: int | None = None
        self._refused = self._aside = self._reopened = False

    @classmethod
    def reopened(cls, path: Path, lock: int, count: int) -> RunFolder:
        """That of a dead run of so many pictures, which is locked. What is damaged in it is deleted."""
        folder = cls()
        folder.path, folder._lock, folder._reopened = path, lock, True
        sign(lock)
        names = [(found[1], int(found[2])) for one in path.iterdir() if (found := _NUMBERED.fullmatch(one.name))]
        for kind, picture in sorted(names, key=lambda one: one[0] != "saved"):
            if picture < count:
                folder._take_in(path, kind, picture)
        return folder

    def _take_in(self, folder: Path, kind: str, picture: int) -> None:
        name = f"{kind}-{picture}"
        if kind == "saved":
            self.saved[picture] = self._path_in(name)
        elif picture in self.saved:
            self.remove(name)
        elif kind == "placing":
            self.placing.add(picture)
        else:
            if kind == "unplaced":
                os.replace(folder / name, folder / f"latents-{picture}")
            (self.checkpoints if kind == "checkpoint" else self.latents).take_in(picture)

    def _path_in(self, name: str) -> str | None:
        with suppress(SdcliError, ValueError, RecursionError):
            path = json.loads(self.read(name, MARK_BYTES))
            return path if isinstance(path, str) else None
        return None

    def describe(self, table: dict[str, Any], blobs: Mapping[str, bytes]) -> None:
        """Put down what is to be done, and the pictures that it is done from, as they are used, by file names."""
        if all(self.write(name, data, lasting=True) for name, data in blobs.items()):
            self.write(RUN_FILE, json.dumps(table, indent=2).encode() + b"\n", lasting=True)

    def goes_on_in(self, dtype: DtypeName, denoised_in: Mapping[int, DtypeName]) -> None:
        """From the last step on another type is used; until then each picture was denoised in one of these."""
        self.checkpoints.put_away()
        denoised = {str(picture): one for picture, one in denoised_in.items()}
        self.write(RETRY, json.dumps({"dtype": dtype, "denoised": denoised}).encode(), lasting=True)

    def saving(self, picture: int) -> None:
        """A picture is about to be put in its place."""
        self.write(f"placing-{picture}", b"")

    def note_saved(self, picture: int, path: str | None) -> None:
        """A picture is in its place."""
        self.saved[picture] = path
        mark = json.dumps(path).encode()
        if len(mark) <= MARK_BYTES and self.write(f"saved-{picture}", mark):
            self.remove(f"placing-{picture}")
        elif self.path is not None:
            with suppress(OSError):  # a full disk renames
                os.replace(self.path / f"placing-{picture}", self.path / f"saved-{picture}")

    def set_aside(self, picture: int) -> None:
        """Keep the latents of a picture that could not be kept itself."""
        self._aside = self.latents.leave(picture, f"unplaced-{picture}") or self._aside

    def close(self, finished: bool) -> None:
        """The run ends. The folder stays if there is anything in it to go on with, unless all is `finished`."""
        begun = len(self.latents) or len(self.checkpoints) or self.saved or self._reopened
        left = self._aside or (begun and not finished)
        if self.path is not None and left:
            self.checkpoints.put_away()
        if self._lock is not None:
            os.close(self._lock)
        if self.path is not None and left and outlasts(self.path) and (self.path / RUN_FILE).is_file():
            self.left = self.path.name
        elif self.path is not None and not (left and outlasts(self.path)):
            self.remove(RUN_FILE)  # first: what is left of a folder without it is nobody's
            shutil.rmtree(self.path, ignore_errors=True)
        self.path = self._lock = None
        self._refused = True

    def write(self, name: str, data: bytes, lasting: bool = False) -> bool:
        """Put a file in its place; whether that was possible. What is `lasting` outlives a loss of power."""
        folder = self._opened()
        return folder is not None and write_own(folder / name, data, lasting)

    def read(self, name: str, most_bytes: int = BLOB_BYTES) -> bytes:
        """A file that was written. Raises SdcliError if it is gone."""
        folder = self.path or Path()
        try:
            return read_own(folder / name, most_bytes)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            what = f"the run's own folder {echo(folder)} cannot be read: {why}"
            raise SdcliError(f"{what}; leave the cache alone while a run goes on, run again") from error

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.path is not None:
            with suppress(OSError):
                (self.path / name).unlink()

    def _opened(self) -> Path | None:
        if self.path is None and not self._refused:
            self.path = new_folder()
            self._refused = self.path is None
            self._lock = None if self.path is None else take_lock(self.path)
            if self._lock is not None:
                sign(self._lock)
        return self.path


class Kept(MutableMapping[int, bytes]):
    """From a picture's number to its bytes, in files of the run's folder; in memory the last one's alone.

    The last one's file may be as old as `period_s` allows. Those that are `lasting` outlive a loss of power.
    """

    def __init__(self, folder: RunFolder, kind: str, period_s: float = 0.0, lasting: bool = False) -> None:
        self._folder, self._kind, self._period_s, self._lasting = folder, kind, period_s, lasting
        self._in_memory: dict[int, bytes] = {}
        self._in_files: set[int] = set()
        """Those whose file is as they are now."""
        self._written_at = float("-inf")

    def __setitem__(self, picture: int, blob: bytes) -> None:
        self._in_files.discard(picture)
        self._in_memory[picture] = blob
        for other in [other for other in self._in_memory if other != picture]:
            if not self._put_away(other):
                return
            del self._in_memory[other]
        if time.monotonic() - self._written_at >= self._period_s:
            self._put_away(picture)

    def __getitem__(self, picture: int) -> bytes:
        if picture in self._in_memory:
            return self._in_memory[picture]
        if picture not in self._in_files:
            raise KeyError(picture)
        try:
            return unsealed(self._folder.read(self._name(picture)))
        except ValueError as error:
            raise SdcliError(f"{self._name(picture)} in the run's own folder is damaged: run again") from error

    def __delitem__(self, picture: int) -> None:
        if picture not in self:
            raise KeyError(picture)
        self._in_memory.pop(picture, None)
        self._in_files.discard(picture)
        self._folder.remove(self._name(picture))

    def __contains__(self, picture: object) -> bool:
        return picture in self._in_memory or picture in self._in_files

    def __iter__(self) -> Iterator[int]:
        return iter(self._in_files | self._in_memory.keys())

    def __len__(self) -> int:
        return len(self._in_files | self._in_memory.keys())

    def drop(self, picture: int) -> None:
        """Forget a picture, if it is there, without a look at its file."""
        if picture in self:
            del self[picture]

    def take_in(self, picture: int) -> None:
        """A picture whose file is there from before; one that is damaged is deleted."""
        self._in_files.add(picture)
        try:
            self[picture]
        except SdcliError:
            del self[picture]

    def put_away(self) -> None:
        """All that is in memory alone into its file, as far as that can be."""
        for picture in self._in_memory:
            self._put_away(picture)

    def leave(self, picture: int, name: str) -> bool:
        """Forget a picture, whose file goes on as another one of the folder, which needs no room; whether it does."""
        blob, kept = self._in_memory.pop(picture, None), picture in self._in_files
        self._in_files.discard(picture)
        if not kept:
            return blob is not None and self._folder.write(name, sealed(blob), self._lasting)
        with suppress(OSError):  # it stays what it was
            if self._folder.path is not None:
                os.replace(self._folder.path / self._name(picture), self._folder.path / name)
        return True

    def _put_away(self, picture: int) -> bool:
        """Into its file, unless it is there; whether it is."""
        if picture not in self._in_files:
            self._written_at = time.monotonic()
            if not self._folder.write(self._name(picture), sealed(self._in_memory[picture]), self._lasting):
                return False
            self._in_files.add(picture)
        return True

    def _name(self, picture: int) -> str:
        return f"{self._kind}-{picture}"
