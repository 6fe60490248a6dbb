"""Where pictures go: decided and tried before any work, kept whatever happens after it.

Refuses to know what a picture shows. A picture that cannot be written to its place is put into the cache
folder, under `rescued`, and the failure says so.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sdcli.errors import BadRequest, Interrupted, SdcliError, echo
from sdcli.images.atomic import place, probe, sweep
from sdcli.images.encode import LONGEST_SIDE, SUFFIXES, encode_picture
from sdcli.images.naming import invented_names
from sdcli.interrupts import deferred
from sdcli.settings import cache_dir
from sdcli.units import MIB, format_size

__all__ = ["DEFAULT_FOLDER", "SUFFIXES", "Destination", "encode_picture", "plan_output"]

DEFAULT_FOLDER = "outputs"
SPARE_BYTES = MIB
"""Room on the disk beyond the pixels themselves, for text and the file system."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the pictures of one run go; made by `plan_output`.

    `folder` is as the user wrote it, None for stdout. `names` has one name a picture; empty for names made
    from prompt and seed. `suffix` says what to encode: one of SUFFIXES. `made` is whether the folder is to be made
    with the first picture.
    """

    folder: str | None
    names: tuple[str, ...]
    suffix: str
    force: bool
    made: bool = False

    def save(self, data: bytes, image: int, seed: int, prompt: str, again: bool = False) -> str | None:
        """Write one picture, whole or not at all; `image` counts from 0. Returns its path, None for stdout.

        A folder's files are named after prompt and seed and never replace one another. With `again` it may be there
        from a run that was killed as it was written. Raises SdcliError if it cannot be written, naming where it was
        kept instead; BrokenPipeError if stdout's reader has gone.
        """
        try:
            if self.folder is None:
                _write_out(data)
                return None
            if self.made:
                os.makedirs(self.folder, exist_ok=True)
            if self.names:
                return place(self.folder, [self.names[image]], data, replace=self.force, again=again)
            return place(self.folder, invented_names(prompt, seed, self.suffix), data, again=again)
        except BrokenPipeError:
            raise
        except Interrupted as error:  # its disk or its reader hangs
            kept = _rescue(invented_names(prompt, seed, self.suffix), data)
            raise Interrupted(
                error.signum, f"the picture was kept as {echo(kept, limit=4096)}" if kept else ""
            ) from error
        except OSError as error:
            what = "stdout" if self.folder is None else echo(self._shown(image))
            kept = _rescue(invented_names(prompt, seed, self.suffix), data)
            # The path is the only way to the picture, so it is not cut as other echoes are.
            outcome = f"the picture was kept as {echo(kept, limit=4096)}" if kept else "nor can the cache keep it"
            raise SdcliError(f"cannot write {what}: {_reason(error)}; {outcome}") from error

    def require_room(self, count: int, width: int, height: int) -> None:
        """Check that `count` pictures of this size can be held by the format and by the disk.

        Raises BadRequest for a side too long for the format, SdcliError for too little room.
        """
        if max(width, height) > LONGEST_SIDE[self.suffix]:
            raise BadRequest(f"{self.suffix} holds {LONGEST_SIDE[self.suffix]} pixels a side at most: name a .png")
        if self.folder is None:
            return
        needed_bytes = count * width * height * 3 + SPARE_BYTES
        free_bytes = shutil.disk_usage(self.existing).free
        if free_bytes < needed_bytes:
            raise SdcliError(
                f"too little room in {echo(self.folder or os.curdir)}: {format_size(needed_bytes)} needed, "
                f"{format_size(free_bytes)} free; make room, or give --output another"
            )

    @property
    def existing(self) -> str:
        """The folder, or where it will be made."""
        folder = self.folder or os.curdir
        return os.path.dirname(folder) or os.curdir if self.made and not os.path.lexists(folder) else folder

    def require_usable(self, images: Iterable[int]) -> None:
        """Check that pictures can go there, of which these have no place yet. Raises SdcliError if they cannot."""
        if self.folder is None:
            return
        _require_usable(self.existing)
        for name in [self.names[image] for image in images] if self.names else ():
            _require_free(os.path.join(self.folder, name), self.force)

    def seen_from(self, working_folder: str) -> Destination:
        """The same place for whoever asked for it in another working folder."""
        here = self.folder is None or os.path.isabs(self.folder) or working_folder == os.getcwd()
        return self if here else replace(self, folder=os.path.join(working_folder, self.folder or ""))

    def takes(self, path: str) -> bool:
        """Whether one of its pictures is to have that path, as far as their names are known before."""
        folder, name = os.path.split(path)
        return name in self.names and os.path.realpath(folder) == os.path.realpath(self.folder or "")

    def _shown(self, image: int) -> str:
        return os.path.join(self.folder or "", self.names[image]) if self.names else self.folder or ""


def plan_output(output: str | None, count: int, *, force: bool) -> Destination:
    """Where `count` pictures go, and that they can go there; whether they have room, `require_room` tells.

    None is the folder `outputs`, made with the first picture; `-` is stdout; an existing folder, or a text that ends
    in a slash, is a folder; all else is a file, numbered from `-1` if there are several pictures.
    Leftovers of killed runs in the folder are deleted.

    Raises BadRequest for a place that cannot be meant, SdcliError for one that is missing, cannot be
    written to or is taken (unless `force` is given and a file is named).
    """
    destination = place_of(output, count, force)
    destination.require_usable(range(count))
    return destination


def place_of(output: str | None, count: int, force: bool) -> Destination:
    """The place alone, whether or not it can be written to. Raises BadRequest for one that cannot be meant."""
    if output is None:
        return Destination(DEFAULT_FOLDER, (), ".png", force, made=True)
    if output == "-":
        if count > 1:
            raise BadRequest(f"stdout takes one picture, not {count}: give --output a folder")
        return Destination(None, (), ".png", force)
    if not output or "\0" in output or "://" in output:
        raise BadRequest(f"{echo(output)} is not a file or folder: give --output a path on this machine")
    if output.endswith(("/", os.sep)) or os.path.isdir(output):
        _require_one_line(output)
        return Destination(output, (), ".png", force)
    folder, name = os.path.split(output)
    stem, suffix = os.path.splitext(name)
    kind = suffix.lower()
    if kind not in SUFFIXES:
        raise BadRequest(f"{echo(output)} must end in .png, .jpg or .webp, or in / for a folder that exists")
    _require_one_line(output)
    numbered = tuple(f"{stem}-{number}{suffix}" for number in range(1, count + 1))
    return Destination(folder, (name,) if count == 1 else numbered, kind, force)


def require_file(path: str, force: bool, option: str) -> None:
    """Check that a file of another kind, which `option` names, can be written there.

    Raises BadRequest for what cannot be a file, SdcliError for a place that cannot be written to or is taken.
    """
    if "\0" in path or "://" in path or os.path.isdir(path):
        raise BadRequest(f"{echo(path)} is not a file: give {option} a path on this machine")
    _require_one_line(path)
    _require_usable(os.path.dirname(path) or os.curdir, option)
    _require_free(path, force)


def save_file(path: str, data: bytes, force: bool) -> None:
    """Write such a file, whole or not at all. Raises SdcliError if that fails, naming where it was kept instead."""
    folder, name = os.path.split(path)
    try:
        with deferred():
            place(folder, [name], data, replace=force)
    except OSError as error:
        stem, suffix = os.path.splitext(name)
        kept = _rescue(invented_names(stem, 0, suffix), data)
        outcome = f"it was kept as {echo(kept, limit=4096)}" if kept else "nor can the cache keep it"
        raise SdcliError(f"cannot write {echo(path)}: {_reason(error)}; {outcome}") from error


def _require_one_line(output: str) -> None:
    """Paths are handed out one a line, and may be shown on a terminal."""
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in output):
        raise BadRequest(f"{echo(output)} has a control character: choose another name")


def _working_folder_has_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _require_usable(folder: str, option: str = "--output") -> None:
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError
        sweep(folder)
        probe(folder)
    except FileNotFoundError as error:
        if os.path.normpath(folder) == os.curdir and _working_folder_has_gone():
            raise SdcliError(f"the working folder has been deleted: change to another, or give {option} one") from error
        if os.path.isdir(folder):  # as /proc, where nothing can be made
            raise SdcliError(f"cannot write to the folder {echo(folder)}: give {option} another") from error
        raise SdcliError(f"the folder {echo(folder)} is missing: create it, or give {option} another") from error
    except NotADirectoryError as error:
        raise SdcliError(f"{echo(folder)} is not a folder: give --output another") from error
    except OSError as error:
        raise SdcliError(f"cannot write to the folder {echo(folder)}: {_reason(error)}") from error


def _require_free(path: str, force: bool) -> None:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SdcliError(f"cannot write {echo(path)}: {_reason(error)}") from error
    if not force:
        raise SdcliError(f"{echo(path)} exists already: choose another name or give --force")
    if not os.path.isfile(path):
        raise SdcliError(f"{echo(path)} is not a file that can be replaced: choose another name")


def _write_out(data: bytes) -> None:
    """All of it to stdout, which without a buffer takes less at a time than it is given."""
    left = memoryview(data)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def _rescue(names: Iterator[str], data: bytes) -> str | None:
    folder = cache_dir() / "rescued"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return place(str(folder), names, data)
    except OSError:
        return None


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError):
        return "a file of that name is there"
    return error.strerror or echo(error)
