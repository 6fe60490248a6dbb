"""What one run must not lose, in a folder of its own: the job, checkpoints, latents that wait to be decoded.

Each file is whole or not there: written beside its place and renamed. None is synced, for a step must not wait for a
disk: a killed process leaves its folder as it was, a machine that loses power perhaps not. Where nothing can be written
all stays in memory, and no run fails for that.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdcli.app.runs import JOB, new_folder, outlasts, take_lock
from sdcli.errors import SdcliError, echo

CHECKPOINT_S = 0.25
"""So often at most a checkpoint is written: of a small model's steps, which take milliseconds, a few are lost."""


class RunFolder:
    """`checkpoints` are the last ones of pictures that are begun, `latents` those of pictures that are denoised.

    Both go by the pictures' numbers. The folder is made when first something is written.
    """

    def __init__(self) -> None:
        self.checkpoints = Kept(self, "checkpoint", CHECKPOINT_S)
        self.latents = Kept(self, "latents")
        self.path: Path | None = None
        self._lock: int | None = None
        self._refused = self._aside = False

    def describe(self, job: dict[str, Any], pixels: bytes, mask: bytes, references: bytes) -> None:
        """Put down what is to be done, and the init image, its mask and pictures to go by, if any, as they are used."""
        self.write(JOB, json.dumps(job, indent=2).encode() + b"\n")
        for name, data in (("init.rgb", pixels), ("mask.grey", mask), ("references.rgb", references)):
            if data:
                self.write(name, data)

    def set_aside(self, picture: int) -> None:
        """Keep the latents of a picture that could not be kept itself."""
        with suppress(KeyError, SdcliError):
            self._aside = self.write(f"unplaced-{picture}", self.latents[picture]) or self._aside

    def close(self, finished: bool) -> None:
        """The run ends. The folder stays if there is anything in it to rescue, unless all is `finished`."""
        if self._lock is not None:
            os.close(self._lock)
        left = self._aside or (len(self.latents) > 0 and not finished)
        if self.path is not None and not (left and outlasts(self.path)):
            shutil.rmtree(self.path, ignore_errors=True)
        self.path = self._lock = None
        self._refused = True

    def write(self, name: str, data: bytes) -> bool:
        """Put a file in its place; whether that was possible."""
        folder = self._opened()
        if folder is None:
            return False
        temporary = folder / f".{name}.tmp"
        try:
            with open(temporary, "wb", buffering=0) as file:
                whole = file.write(data) == len(data)  # a full disk takes some of it
            if whole:
                os.replace(temporary, folder / name)
                return True
        except OSError:
            pass
        with suppress(OSError):
            temporary.unlink()
        return False

    def read(self, name: str) -> bytes:
        """A file that was written. Raises SdcliError if it is gone."""
        folder = self.path or Path()
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            what = f"the run's own folder {echo(folder)} cannot be read: {error.strerror}"
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
        return self.path


class Kept(MutableMapping[int, bytes]):
    """From a picture's number to its bytes, in files of the run's folder; in memory the last one's alone.

    The last one's file may be as old as `period_s` allows.
    """

    def __init__(self, folder: RunFolder, kind: str, period_s: float = 0.0) -> None:
        self._folder, self._kind, self._period_s = folder, kind, period_s
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
        return self._folder.read(self._name(picture))

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

    def _put_away(self, picture: int) -> bool:
        """Into its file, unless it is there; whether it is."""
        if picture not in self._in_files:
            self._written_at = time.monotonic()
            if not self._folder.write(self._name(picture), self._in_memory[picture]):
                return False
            self._in_files.add(picture)
        return True

    def _name(self, picture: int) -> str:
        return f"{self._kind}-{picture}"
