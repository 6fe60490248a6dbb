"""The sha256 of a model that is one file: other tools look models up by its beginning.

It takes some seconds for gigabytes, so it is worked out once, beside the run, and remembered by the file's stamp.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from threading import Thread

from sdcli.domain import Model, WeightFile
from sdcli.models.header import stamp_of
from sdcli.plan.remembered import Table, change_table, read_table
from sdcli.units import KIB

TABLE = "hashes.json"
KEPT = 200
"""Files that are remembered."""

PIECE_BYTES = 256 * KIB


class FileHash:
    """The digest of the one file that a model is, if it is one; begun at once, waited for when it is asked for."""

    def __init__(self, model: Model) -> None:
        self._sha256 = model.sha256
        self._thread: Thread | None = None
        file = next((file for part in model.parts.values() for file in part.files if file.path == model.path), None)
        if file is not None and self._sha256 is None:
            self._sha256 = _remembered(file)
            if self._sha256 is None:
                self._thread = Thread(target=self._work_out, args=(file,), daemon=True)
                self._thread.start()

    def __call__(self) -> str | None:
        """None for a model of many files, and for one that can be read no more."""
        if self._thread is not None:
            self._thread.join()
        return self._sha256

    def _work_out(self, file: WeightFile) -> None:
        digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
        try:
            with file.path.open("rb") as opened:
                while nbytes := opened.readinto(piece):
                    digest.update(piece[:nbytes])
                status = file.path.stat()
        except OSError:
            return
        if stamp_of(status) == file.stamp:
            self._sha256 = digest.hexdigest()
            _remember(file, self._sha256)


def _key(file: WeightFile) -> str:
    return f"{Path(file.path)} {file.stamp}"


def _remembered(file: WeightFile) -> str | None:
    sha256 = read_table(TABLE).get(_key(file))
    return sha256 if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256) else None


def _remember(file: WeightFile, sha256: str) -> None:
    def changed(table: Table) -> Table:
        others = {key: value for key, value in table.items() if key != _key(file)}
        return dict([*others.items(), (_key(file), sha256)][-KEPT:])

    change_table(TABLE, changed)
