"""Runs as a page is told of them: their reports, the machine, and nothing that names its user."""

from __future__ import annotations

import base64
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdcli.app.record import RunRecord
from sdcli.app.report import machine_table, report
from sdcli.errors import CeilingCrossed, Interrupted, WillNotFit
from sdcli.units import format_size

THUMBNAILS = 6
"""Pictures of a run that are shown."""

_OUTCOMES = {WillNotFit: "will_not_fit", CeilingCrossed: "killed", Interrupted: "interrupted"}


def shown_run(record: RunRecord, error: BaseException | None = None, thumbnails: int = THUMBNAILS) -> dict[str, Any]:
    """The report of a run with what a page wants besides: outcome, what ended it early, prompt, size, thumbnails."""
    from sdcli.images.thumbnail import thumbnail  # here, because Pillow takes a third of the time that --help takes

    task = record.task
    width, height = task.pictures_size
    found = {
        **report(record, with_series=True),
        "outcome": outcome_of(error),
        "error": "" if error is None else str(error) or type(error).__name__,
        "prompt": task.request.prompt if task.written is None else task.written,
        "request": {"width": width, "height": height},
    }
    pictures = [Path(path) for path, _ in record.pictures[:thumbnails] if path is not None]
    jpegs = [jpeg for path in pictures if (jpeg := thumbnail(path)) is not None]
    found["thumbnails"] = [f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs]
    return found


def outcome_of(error: BaseException | None) -> str:
    """In one word, as `sdcli bench --json` has it."""
    if error is None:
        return "ok"
    return next((outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind)), "failed")


def shown_machine(record: RunRecord) -> dict[str, str]:
    """What a reader needs to compare the figures with others', by name: the machine, and versions of programs."""
    told, here = report(record), machine_table()
    limit_bytes = here["container_limit_bytes"]
    known = {
        "processor": here["cpu"],
        "cores": str(here["cores"] or ""),
        "threads": str(record.threads or ""),
        "memory": format_size(here["physical_memory_bytes"]),
        "container": "" if limit_bytes is None else f"limited to {format_size(limit_bytes)}",
        "device": record.device,
        "system": here["system"],
        "Python": here["python"],
        "torch": told["torch_version"],
        "sdcli": told["sdcli_version"],
    }
    return {name: value for name, value in known.items() if value}


def without_home(value: Any) -> Any:
    """The same with ~ for the home folder, whose name is often a person's, in every text of lists and tables."""
    homes: set[str] = set()
    with suppress(RuntimeError, OSError):  # of a user without a home
        homes = {str(Path.home()), os.path.realpath(Path.home())}
    named = sorted((re.escape(home) for home in homes if len(Path(home).parts) > 1), key=len, reverse=True)
    return _replaced(value, re.compile(rf"(?:{'|'.join(named)})(?![\w.-])")) if named else value


def _replaced(value: Any, home: re.Pattern[str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(one, home) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, home) for one in value]
    return home.sub("~", value) if isinstance(value, str) else value
