"""The run file, job.json of a run's folder: all that is needed to go on with the run, and what it was drawn with.

What a task has goes along field by field (app/typed.py). It is read as a stranger's file would be.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from sdcli import __version__, machine
from sdcli.app.asked import SEED_END
from sdcli.app.own_files import read_own
from sdcli.app.record import RunRecord, Task, Wanted
from sdcli.app.report import plan_table
from sdcli.app.runs import RUN_FILE, RUN_FILE_BYTES
from sdcli.app.typed import Untrue, from_plain, to_plain
from sdcli.domain import Model, Request, Sources
from sdcli.errors import SdcliError, echo, printable
from sdcli.models.opened import open_model
from sdcli.models.stamps import stamps_of
from sdcli.units import MIB

SCHEMA = "sdcli.run/2"

FILES = {"pixels": "init.rgb", "mask": "mask.grey", "references": "references.rgb"}
"""Names of files that bytes of a task lie in; others go by the name of their field."""

BLOB_BYTES = 256 * MIB
"""Of such a file at most: ten pictures to go by, or an init image of 8192x8192."""

SIDE_MOST, STEPS_MOST, COUNT_MOST = 8192, 1000, 1000


@dataclass(frozen=True, slots=True)
class Origins:
    """The model of a run, as the run file tells of it."""

    ref: str
    sources: Sources
    digest: str
    sha256: str | None
    stamps: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Maker:
    """What bits depend on besides the task: versions of programs, and the kind of processor."""

    sdcli: str
    torch: str
    diffusers: str
    transformers: str
    processor: str
    units: tuple[str, ...]
    """Of vectors and matrices."""

    @classmethod
    def here(cls) -> Maker:
        """This program on this machine."""
        torch, diffusers, transformers = (metadata.version(name) for name in ("torch", "diffusers", "transformers"))
        units = tuple(machine.cpu_vector_flags())
        return cls(__version__, torch, diffusers, transformers, machine.cpu_name(), units)

    def difference(self, other: Maker) -> str | None:
        """What the `other` one has another of, in words."""
        for field in fields(self):
            was, now = getattr(self, field.name), getattr(other, field.name)
            if was != now and field.name == "units":
                return "it was drawn with other vector units of the processor"
            if was != now:
                return f"it was drawn with {field.name} {echo(was, 60)}, this is {echo(now, 60)}"
        return None


@dataclass(frozen=True, slots=True)
class RunFile:
    """What is read back. The task's bytes and its model are read when they are asked for."""

    wanted: Wanted
    maker: Maker
    device: str
    """In the worker's words."""
    request: Request
    origins: Origins
    table: Mapping[str, Any]
    folder: Path

    def task(self) -> Task:
        """The task. Raises SdcliError where its model cannot be opened, or what it is drawn from is damaged."""
        from sdcli.images.masks import Canvas  # here, because Pillow takes a third of the time that --help takes
        from sdcli.images.read import Edit

        readers: dict[type, Callable[[Any], Any]] = {bytes: self._blob, Model: self._model}
        with _told(self.folder):
            task = from_plain(Task, self.table, readers, {"Canvas": Canvas, "Edit": Edit})
            _require_bytes(task)
        return task

    def model_changed(self, task: Task) -> str | None:
        """What of the model is not as it was, in words."""
        if task.model.digest != self.origins.digest:
            return f"the model {echo(task.model.ref)} is another one now"
        now, was = stamps_of(task.model), self.origins.stamps
        changed = sorted(name for name in now.keys() | was.keys() if now.get(name) != was.get(name))
        return f"the model's file {echo(changed[0])} has been written to since" if changed else None

    def _model(self, _: Any) -> Model:
        return open_model(self.origins.ref, self.origins.sources, self.origins.sha256)

    def _blob(self, plain: Any) -> bytes:
        if plain is None:
            return b""
        told = from_plain(_Blob, plain, {})
        if told.file != os.path.basename(told.file) or told.file.startswith(".") or not told.file:
            raise Untrue(f"{echo(told.file)} is no file of the folder")
        data = read_own(self.folder / told.file, min(BLOB_BYTES, max(0, told.size_bytes)))
        if hashlib.sha256(data).hexdigest() != told.sha256:
            raise Untrue(f"{told.file} is damaged")
        return data


@dataclass(frozen=True, slots=True)
class _Blob:
    """Bytes of a task."""

    file: str
    size_bytes: int
    sha256: str


def run_file_of(record: RunRecord) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The file of a run that is planned, as JSON has it, and the files that go with it."""
    task, blobs = record.task, dict[str, bytes]()

    def put(name: str, data: bytes) -> Any:
        if not data:
            return None
        file = FILES.get(name, f"{name}.bin")
        blobs[file] = data
        return to_plain(_Blob(file, len(data), hashlib.sha256(data).hexdigest()), {})

    def named(_: str, model: Model) -> Any:
        return to_plain(Origins(model.ref, model.sources, model.digest, model.sha256, dict(stamps_of(model))), {})

    table = {
        "schema": SCHEMA,
        "task": to_plain(task, {bytes: put, Model: named}),
        "wanted": None if record.wanted is None else to_plain(record.wanted, {}),
        "maker": to_plain(Maker.here(), {}),
        "device": record.device,
        "plan": None if record.planned is None else plan_table(task, record.planned),
    }
    return table, blobs


def read_run_file(folder: Path) -> RunFile:
    """The file in a run's folder. Raises SdcliError for one that is none, is damaged, or is of another version."""
    with _told(folder):
        table = json.loads(read_own(folder / RUN_FILE, RUN_FILE_BYTES), parse_constant=_refuse)
        if not isinstance(table, dict) or not isinstance(table.get("task"), dict):
            raise Untrue("it is no job")
        if table.get("schema") != SCHEMA:
            raise Untrue(f"its format {echo(table.get('schema'))} is not known: it is of another version of sdcli")
        from sdcli.images.write import Destination  # here, because Pillow takes a third of the time that --help takes

        request = from_plain(Request, table["task"].get("request"), {})
        _require_within(request)
        wanted = from_plain(Wanted, table.get("wanted"), {}, {"Destination": Destination})
        _require_place(wanted, request.count)
        return RunFile(
            wanted=wanted,
            maker=from_plain(Maker, table.get("maker"), {}),
            device=str(table.get("device")),
            request=request,
            origins=from_plain(Origins, table["task"].get("model"), {}),
            table=table["task"],
            folder=folder,
        )


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Whatever is wrong with files of the folder inside is told as one line."""
    try:
        yield
    except (Untrue, OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        what = f"the run {folder.name} cannot be gone on with: {printable(why)[:200]}"
        raise SdcliError(f"{what}; sdcli runs remove {folder.name} takes it away") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _require_within(request: Request) -> None:
    """Raises Untrue for what no command line can ask for."""
    references = [side for size in request.references for side in size]
    sides = (request.width, request.height, *(request.canvas or ()), *references)
    within = all(0 < side <= SIDE_MOST * 2 for side in sides) and 0 < request.steps <= STEPS_MOST
    within = within and 0 < request.count <= COUNT_MOST and 0 <= request.seed <= SEED_END - request.count
    within = within and request.guidance >= 0 and (request.strength is None or 0 <= request.strength <= 1)
    if not within:
        raise Untrue("its request is beyond all bounds")


def _require_place(wanted: Wanted, count: int) -> None:
    """Raises Untrue for a place that no command line can name."""
    from sdcli.images.write import SUFFIXES  # here, because Pillow takes a third of the time that --help takes

    place = wanted.destination
    names = all(os.path.basename(name) == name and name.lower().endswith(place.suffix) for name in place.names)
    texts = "".join((wanted.working_folder, place.folder or "", *place.names))
    whole = place.suffix in SUFFIXES and len(place.names) in (0, count) and names and texts.isprintable()
    if not whole or not os.path.isabs(wanted.working_folder):
        raise Untrue("its place for pictures is none")


def _require_bytes(task: Task) -> None:
    """Raises Untrue where pictures have not the sizes that the request tells."""
    request, canvas = task.request, task.canvas
    area = request.width * request.height
    sizes = {
        "init": (task.pixels, 0 if request.strength is None else area * 3),
        "mask": (task.mask, area if request.masked else 0),
        "references": (task.references, sum(width * height * 3 for width, height in request.references)),
        "canvas": (b"" if canvas is None else canvas.pixels, 0 if canvas is None else canvas.width * canvas.height * 3),
        "share": (b"" if canvas is None else canvas.share, 0 if canvas is None else canvas.width * canvas.height),
    }
    for name, (data, size_bytes) in sizes.items():
        if len(data) != size_bytes:
            raise Untrue(f"its {name} has {len(data)} bytes, not {size_bytes}")
    if (request.canvas is not None) != (canvas is not None) or (
        canvas is not None and request.canvas != (canvas.width, canvas.height)
    ):
        raise Untrue("its canvas has another size")
    if canvas is not None:
        left, top, right, bottom = canvas.box
        if not (0 <= left < right <= canvas.width and 0 <= top < bottom <= canvas.height):
            raise Untrue("its canvas has another box")
