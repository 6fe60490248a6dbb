"""A disk that fails: at the k-th write, sync or rename of the host's, once or from then on, with an error or a kill."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

OPERATIONS = ("write", "fsync", "rename")

ERRORS = {"no space": (28, "No space left on device"), "I/O error": (5, "Input/output error")}

PLACES = ("sdcli.app.own_files", "sdcli.images.atomic")
"""Modules that write what must not be lost."""


@dataclass
class Fault:
    """What fails: the operation, at which time, how, and whether it goes on failing. It was done `count` times."""

    operation: str
    at: int
    how: str
    lasts: bool = False
    count: int = 0

    @property
    def came(self) -> bool:
        """Whether the run came so far."""
        return self.count >= self.at

    def happen(self) -> None:
        """One operation of that kind."""
        self.count += 1
        if self.count == self.at or (self.lasts and self.came):
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(*ERRORS[self.how])

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """From now on."""
        if self.operation == "write":
            for place in PLACES:
                patch.setattr(f"{place}.open", self._open, raising=False)
        else:
            for name in {"fsync": ("fsync",), "rename": ("replace", "link", "rename")}[self.operation]:
                patch.setattr(os, name, self._failing(getattr(os, name)))

    def _open(self, *arguments: Any, **options: Any) -> Any:
        file = builtins.open(*arguments, **options)  # noqa: SIM115  the caller's to close
        return _File(file, self) if any(mode in file.mode for mode in "wx") else file

    def _failing(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            self.happen()
            return function(*arguments, **options)

        return wrapper


class _File:
    """A file whose writing may fail."""

    def __init__(self, file: Any, fault: Fault) -> None:
        self._file, self._fault = file, fault

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> int:
        """As a file's."""
        self._fault.happen()
        return int(self._file.write(data))

    def flush(self) -> None:
        """As a file's."""
        self._file.flush()

    def fileno(self) -> int:
        """As a file's."""
        return int(self._file.fileno())
