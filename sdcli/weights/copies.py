"""Where a prepared copy of the denoiser's weights is or would be, who uses it, and which copies go.

A copy is of one model's bytes, one type, one kind of processor and one torch, and where layouts depend on it of one
size. Anything else has a copy of its own beside it, and machines of the same kind may share one. It costs as much disk
as the weights do, and is never made where that would leave the disk full. All copies together have a cap: those used
longest ago go first, and one that is in use stays. The worker makes them (weights/prepared.py).

Locks are advice: on a file system that has none, everything goes on without.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from pathlib import Path

import psutil

from sdcli import machine, settings
from sdcli.domain import Component, DeviceName, DtypeName
from sdcli.errors import BadRequest, SdcliError, echo
from sdcli.locks import Held, lock
from sdcli.models.disks import lies_in_memory
from sdcli.models.header import sample_sha256
from sdcli.units import GIB, format_size, parse_size
from sdcli.uses import MapShape

WEIGHTS, INDEX = "weights.bin", "index.json"
"""The files of a copy."""

LEFT_FREE_BYTES = 2 * GIB
"""Of the disk, for others."""

CAP_BYTES, CAP_SHARE = 16 * GIB, 4
"""All copies together take no more than so much, and no more than one part in so many of their disk."""

UNUSED_S = 30 * 24 * 3600.0
"""A copy that nobody used for so long goes."""

DEAD_S = 24 * 3600.0
"""A half-made copy that nothing was written to for so long is nobody's: its maker may be on another machine."""

WAIT_S = 300.0
"""So long a run waits for another one that is making the same copy."""

_LAYOUT = 3
"""Raised when copies made before can be used no more."""

_COPY = re.compile(r"(fp32|fp16|bf16)-[0-9a-f]{16}")
_HALF = re.compile(r".+\.([0-9a-f]{16})\.(\d{1,9})\.part")


def place_of_copy(
    component: Component, device: DeviceName, dtype: DtypeName, sees: MapShape, size_bytes: int
) -> Path | None:
    """The folder of the copy of these weights for this machine and size of latents, there or still to be made.

    None where there can be none. Raises BadRequest for a cap in SDCLI_PREPARED_CAP that is no size.
    """
    if device != "cpu" or not machine.cpu_packs_weights(dtype):
        return None
    _told_cap_bytes()
    try:
        whose = _root() / _digest(str(component.folder.resolve()))
        folder = whose / f"{dtype}-{_key(component, sees)}"
        return folder if is_made(folder) or _has_room(folder, size_bytes) else None
    except (OSError, SdcliError):  # the model, the disk or the home folder has gone: whoever needs it will say so
        return None


def lack_of_room(device: DeviceName, dtype: DtypeName, size_bytes: int) -> str:
    """What to say where nothing but the disk's room is in the way of a copy of so many bytes; else empty."""
    if not size_bytes or device != "cpu" or not machine.cpu_packs_weights(dtype):
        return ""
    try:
        there = _there(_root())
        free_bytes = shutil.disk_usage(there).free
    except (OSError, SdcliError):
        return ""
    if free_bytes > _room_bytes(size_bytes):
        return ""
    wanted = format_size(_room_bytes(size_bytes))
    return (
        f"no prepared copy of the denoiser, each step takes longer: it wants {wanted} free, for others as well, and"
        f" {echo(there)} has {format_size(free_bytes)}: make room, or set SDCLI_CACHE to another disk"
    )


def _room_bytes(size_bytes: int) -> int:
    """What the disk must have free for a copy."""
    return size_bytes * 9 // 8 + LEFT_FREE_BYTES


def _root() -> Path:
    return settings.cache_dir() / "prepared"


def is_made(folder: Path) -> bool:
    """Whether there is a copy, as far as can be told without reading it."""
    return (folder / INDEX).is_file() and (folder / WEIGHTS).is_file()


def unfinished(folder: Path, worker_pid: int) -> Path:
    """Where a worker of this machine writes a copy before it is whole."""
    return folder.with_name(f"{folder.name}.{_machine()}.{worker_pid}.part")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """The copy in `folder` is in use: nobody deletes it meanwhile, and its last use is now."""
    with _locked(folder, alone=False) as marker:
        if marker is not None:
            with suppress(OSError):
                os.utime(marker)
        yield


def being_made(folder: Path) -> bool:
    """Whether another process is making the copy in `folder`."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        if path.exists():
            lock(path, 0).release()
    except Held:
        return True
    except OSError:
        pass
    return False


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """The copy in `folder` is made by one process at a time.

    Others wait, and after WAIT_S go on: two makers cost time and harm nothing.
    """
    path, held = folder.with_name(f"{folder.name}.lock"), None
    with suppress(Held, OSError):
        held = lock(path, WAIT_S)
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                held.release()
                path.unlink(missing_ok=True)  # whoever waits for it finds the copy made


def sweep(folder: Path) -> None:
    """Delete half-made copies of the dead, and copies that nobody used for long or that go beyond the cap.

    The copy in `folder` stays. Never fails.
    """
    with suppress(OSError, SdcliError):
        for half in _root().glob("*/*.part"):
            if _is_dead(half):
                shutil.rmtree(half, ignore_errors=True)
        for other in outdated(folder):
            remove(other)
            with suppress(OSError):
                other.parent.rmdir()  # if that was the last one


def outdated(folder: Path) -> list[Path]:
    """Copies that are to go, those used longest ago first; never the one in `folder`."""
    found = [path for path in _root().glob("*/*") if path != folder and _COPY.fullmatch(path.name) and path.is_dir()]
    cap_bytes = _told_cap_bytes() or min(CAP_BYTES, shutil.disk_usage(_root()).total // CAP_SHARE)
    now, total, gone = time.time(), _size_bytes(folder), []
    for path in sorted(found, key=_last_use, reverse=True):
        total += _size_bytes(path)
        if total > cap_bytes or now - _last_use(path) > UNUSED_S:
            gone.append(path)
    return gone[::-1]


def copies_of(path: Path) -> dict[Path, int]:
    """The copies of weights that lie anywhere in a folder or are a file, and the bytes of each."""
    homes = [path, *(Path(home) / name for home, folders, names in os.walk(path) for name in (*folders, *names))]
    whose = dict.fromkeys(_root() / _digest(str(home.resolve())) for home in homes)
    return {copy: _size_bytes(copy) for one in whose for copy in sorted(one.glob("*")) if _COPY.fullmatch(copy.name)}


def remove(folder: Path, though_used: bool = False) -> None:
    """Delete a copy that nobody uses, or a damaged one anyway. Whoever has it mapped keeps what is mapped."""
    if not os.path.lexists(folder):
        return
    with nullcontext(folder) if though_used else _locked(folder, alone=True) as free:
        if free is None:
            return
        gone = unfinished(folder.with_name(f"{folder.name}.gone"), os.getpid())
        with suppress(OSError):
            os.rename(folder, gone)  # at once: there is never half a copy under its name
            if gone.is_dir():
                shutil.rmtree(gone, ignore_errors=True)
            else:  # what was there instead: a pipe would be waited for
                gone.unlink()
            if not though_used:
                free.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, alone: bool) -> Iterator[Path | None]:
    """The file beside a copy whose time is that of its last use, locked; None if another has it or it cannot be had.

    Users share it. Where there are no locks, a copy that was used in the last day counts as in use.
    """
    marker, opened = folder.with_name(f"{folder.name}.used"), None
    if sys.platform == "win32":  # where no copy is ever made
        yield None
        return
    import fcntl

    recent = alone and time.time() - _last_use(folder) < DEAD_S
    try:
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            fcntl.flock(opened, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        except OSError:
            free = opened is not None and not recent
        yield marker if free else None
    finally:
        if opened is not None:
            os.close(opened)


def _last_use(folder: Path) -> float:
    for path in (folder.with_name(f"{folder.name}.used"), folder / INDEX, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _size_bytes(folder: Path) -> int:
    try:
        return (folder / WEIGHTS).stat().st_size
    except OSError:
        return 0


def _is_dead(half: Path) -> bool:
    """Of this machine: whether its maker is gone. Of any: whether it has been left alone for long."""
    named = _HALF.fullmatch(half.name)
    if named is not None and named[1] == _machine() and not psutil.pid_exists(int(named[2])):
        return True
    times = []
    for path in (half, half / WEIGHTS):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return bool(times) and time.time() - max(times) > DEAD_S


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where a process id means the same process: the machine, and in a container the container."""
    try:
        processes = os.readlink("/proc/self/ns/pid")
    except OSError:
        processes = ""
    return _digest(platform.node(), processes)


def _told_cap_bytes() -> int | None:
    told = os.environ.get("SDCLI_PREPARED_CAP")
    try:
        return parse_size(told) if told else None
    except BadRequest as error:
        raise BadRequest(f"SDCLI_PREPARED_CAP: {error}") from error


def _key(component: Component, sees: MapShape) -> str:
    """Of what the copy was made from and for.

    A file that was put in another's place has another inode or time of change, which nobody can set; where a file
    system keeps neither, a digest of its header and of blocks spread over it still tells most others apart.
    """
    facts = [str(_LAYOUT), machine.torch_version(), *machine.cpu_vector_flags(), str(sees)]
    facts += [
        f"{file.path.name} {file.stamp} {file.header_sha256} {_sampled(file.path, file.stamp)}"
        for file in sorted(component.files, key=lambda file: file.path)
    ]
    return _digest(*facts)


@lru_cache(maxsize=64)
def _sampled(path: Path, stamp: str) -> str:
    return sample_sha256(path)


def _digest(*facts: str) -> str:
    return hashlib.sha256("\n".join(facts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _there(folder: Path) -> Path:
    """The folder, or the nearest around it that there is."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _has_room(folder: Path, size_bytes: int) -> bool:
    there = _there(folder)
    return (
        there.is_dir()
        and os.access(there, os.W_OK)
        and not lies_in_memory(there)
        and shutil.disk_usage(there).free > _room_bytes(size_bytes)
    )
