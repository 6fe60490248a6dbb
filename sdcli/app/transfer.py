"""One file from the Hub into its cache: what is there under its name is whole, and has the content that the Hub says.

Bytes go to a file beside it, BLOB.incomplete, which a later pull goes on with; huggingface_hub begins anew each time,
and compares sizes alone.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from sdcli.app.asked import Tell
from sdcli.app.hub import RemoteFile, bytes_of
from sdcli.app.hub_errors import TRIES, Again, pause
from sdcli.errors import SdcliError, echo
from sdcli.models.blobs import PIECE_BYTES, Digest, Moved, digest_for
from sdcli.models.hub_ids import HubRef
from sdcli.units import format_size

INCOMPLETE = ".incomplete"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Wrong(Exception):
    """What came is not the file that the Hub listed."""


class Transfer:
    """Of one file to `blob`. `moved` hears of every byte, and of those that come to nothing as fewer."""

    def __init__(self, ref: HubRef, commit: str, file: RemoteFile, blob: Path, tell: Tell, moved: Moved) -> None:
        self._ref, self._commit, self._file, self._tell, self._moved = ref, commit, file, tell, moved
        self._blob, self._partial = blob, blob.with_name(blob.name + INCOMPLETE)
        self._have = 0
        self._digest: Digest = digest_for(file.blob, file.size_bytes)

    def run(self) -> None:
        """Fetch it. Raises SdcliError; what came of the right file is kept for the next time."""
        try:
            if self._left() and self._tried() is None:  # what an earlier pull left may be of another file
                return
            wrong = self._tried()
        except OSError as error:
            if error.errno in _FULL:
                self._drop()
            what = f"cannot write {echo(self._partial)}: {error.strerror}"
            raise SdcliError(f"{what}; make room, or set HF_HUB_CACHE to a folder on another disk") from error
        if wrong is not None:
            name = f"{self._ref.repo}: {echo(self._file.name)}"
            raise SdcliError(f"{name} came {wrong}: nothing of it is kept; pull again, without a proxy if there is one")

    def _left(self) -> bool:
        return self._partial.is_file() and self._partial.stat().st_size > 0

    def _tried(self) -> str | None:
        """Bring it to its end; None if that is good, else what is wrong with it, and nothing is left."""
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._partial.open("a+b", buffering=0) as partial:
                self._take_up(partial)
                self._receive(partial)
                if self._digest.hexdigest() != self._file.blob:
                    raise Wrong("with other content than the Hub lists")
                os.fsync(partial.fileno())
            os.replace(self._partial, self._blob)
            return None
        except Wrong as error:
            self._drop()
            return str(error)

    def _take_up(self, partial: BinaryIO) -> None:
        """Begin with what is there."""
        self._begin()
        partial.seek(0)
        while piece := partial.read(PIECE_BYTES):
            self._count(piece)
        if self._have > self._file.size_bytes:
            raise Wrong("longer than the Hub lists")

    def _receive(self, partial: BinaryIO) -> None:
        """Ask for the rest until it is there, or a few times nothing comes."""
        tries = 0
        while self._have < self._file.size_bytes:
            had = self._have
            try:
                self._ask(partial)
            except Again as lack:
                tries = 1 if self._have > had else tries + 1
                if tries >= TRIES:
                    raise lack.why from lack
                pause(lack, tries - 1, self._tell)

    def _ask(self, partial: BinaryIO) -> None:
        with bytes_of(self._ref, self._commit, self._file, self._have) as (begin, whole, pieces):
            if whole is not None and whole != self._file.size_bytes:
                raise Wrong(f"as {format_size(whole)} where the Hub lists {format_size(self._file.size_bytes)}")
            if begin not in (0, self._have):
                raise Wrong("with another part of it than was asked for")
            if begin < self._have:  # the server knows no parts
                partial.truncate(0)
                self._begin()
            for piece in pieces:
                if self._have + len(piece) > self._file.size_bytes:
                    raise Wrong("longer than the Hub lists")
                _write(partial, piece)
                self._count(piece)
        if self._have < self._file.size_bytes:
            raise Wrong("shorter than the Hub lists")

    def _begin(self) -> None:
        self._moved(-self._have)
        self._have, self._digest = 0, digest_for(self._file.blob, self._file.size_bytes)

    def _count(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._have += len(piece)
        self._moved(len(piece))

    def _drop(self) -> None:
        with suppress(OSError):
            self._partial.unlink()
        self._begin()


def _write(file: BinaryIO, piece: bytes) -> None:
    """All of it: without a buffer a disk that is nearly full takes some of it, and then says why."""
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]
