"""What host and worker say to each other, and how it travels.

A message is a frozen dataclass. On the pipe it is one JSON line, followed by `payload_bytes` raw bytes
when it carries pixels or latents. Both ends are this program, of one version: nothing here is a format
that anyone else may rely on.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from sdcli.domain import DeviceName, DtypeName, Hires, Part, Plan, Request, Sources, StageName
from sdcli.uses import WeightRow


@dataclass(frozen=True, slots=True)
class Start:
    """Host → worker, first: import what the device needs, then answer Ready."""

    device: DeviceName
    limit_bytes: int | None
    measure: DtypeName | None = None
    """Find out how fast the device computes in this type."""
    threads: int | None = None
    """Of the CPU that compute; None is what the library takes."""


@dataclass(frozen=True, slots=True)
class Synthesize:
    """Host → worker: make the synthetic model `name` in `folder`, or its `outline` alone."""

    name: str
    folder: str
    outline: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """Host → worker: draw, all of it or up to the latents or from them on.

    The payload is, unless pictures alone are asked for, the pictures that the model is to go by, and the init image, if
    there are any: RGB, height x width x 3 bytes each. After them comes the mask, if there is one, height x width bytes,
    not 0 where pixels change. Then come checkpoints to go on from, of the lengths given: the last one of each image
    begun. Pictures alone are drawn of the images that have one.
    """

    request: Request
    plan: Plan
    model: Sources
    dtype: DtypeName
    checkpoints: tuple[int, ...] = ()
    payload: bytes = b""
    prepared: str | None = None
    """Folder of the prepared copy of the denoiser, there or to be made."""
    part: Part = "whole"
    tables: dict[StageName, tuple[WeightRow, ...]] = field(default_factory=dict)
    """The table of weights of each stage."""
    stamps: dict[str, str] = field(default_factory=dict)
    """Of the model's files as the host knows them (models/stamps.py); the worker draws from no others."""
    keeps: bool = True
    """Whether what a stage gives may be kept for other runs, and taken from them."""
    preview_every: int = 0
    """Steps from one Preview to the next; 0 is none."""
    saved: tuple[int, ...] = ()
    """Pictures that are drawn already, by their numbers."""


@dataclass(frozen=True, slots=True)
class Count:
    """Host → worker: count what these requests take, without memory. It answers Counted for each, in their order."""

    model: Sources
    requests: tuple[Request, ...]
    dtype: DtypeName


@dataclass(frozen=True, slots=True)
class Counted:
    """Worker → host. The payload is of plan/counts.py."""

    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Host → worker: compare what the device computes in this type with FP32; copy so many bytes, for their speed."""

    dtype: DtypeName
    copied_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SelfTested:
    """Worker → host: the largest difference of each kind of arithmetic, as a share of the largest number there is, and
    what is allowed of it; bytes that memory reads and writes a second, if that was asked for."""

    differences: dict[str, float]
    allowed: float
    memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Relieve:
    """Host → worker: the ceiling is near, free what you can."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Host → worker, several times a second: the watchdog is at work. Without it the worker stands still."""


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker → host: everything is imported, nothing is loaded."""

    device: str
    torch_version: str
    device_peak_bytes: int = 0
    flops: float | None = None
    """Operations of a denoise step in a second, if that was asked for."""
    tripped: str = ""
    """What the lean import tripped over, if it did: everything was imported then."""
    threads: int | None = None
    """Of the CPU that compute."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Worker → host: part of a piece of work other than a stage is done."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StageBegan:
    """Worker → host."""

    name: StageName


@dataclass(frozen=True, slots=True)
class StageLoaded:
    """Worker → host: the component's weights are where they will be used.

    None are where what the stage gives was `kept` by another run.
    """

    name: StageName
    load_s: float
    kept: bool = False


@dataclass(frozen=True, slots=True)
class StageEnded:
    """Worker → host: the component is freed. `device_peak_bytes` is the accelerator's own memory (CUDA)."""

    name: StageName
    run_s: float
    device_peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StepDone:
    """Worker → host: one denoising step. The payload is a checkpoint to resume from."""

    image: int
    step: int
    count: int
    seconds: float
    bytes_read: int
    payload: bytes = b""
    round: int = 0
    """Of the rounds that a request has; `step` counts those of all, and so does `count`."""


@dataclass(frozen=True, slots=True)
class LatentsDone:
    """Worker → host: a picture has no step left to run, and is only to be decoded, from the checkpoint in the payload.

    The last StepDone of a picture says the same.
    """

    image: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Preview:
    """Worker → host: about what a picture will be, small. The payload is RGB, height x width x 3 bytes."""

    image: int
    width: int
    height: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class PictureDone:
    """Worker → host. The payload is RGB, height x width x 3 bytes."""

    image: int
    seed: int
    width: int
    height: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Notice:
    """Worker → host: something a person should know, without being a failure."""

    what: str
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Worker → host: the job is done and everything is freed."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Worker → host: an SdcliError by name, or an unexpected exception with its traceback."""

    kind: str
    message: str
    traceback: str = ""


Message = (
    Start
    | Synthesize
    | Count
    | Counted
    | SelfTest
    | SelfTested
    | Job
    | Relieve
    | Watched
    | Ready
    | Progress
    | StageBegan
    | StageLoaded
    | StageEnded
    | StepDone
    | LatentsDone
    | Preview
    | PictureDone
    | Notice
    | Finished
    | Failed
)

_TYPES: dict[str, type[Any]] = {kind.__name__: kind for kind in Message.__args__}


def write_message(pipe: BinaryIO, message: Message) -> None:
    """Put one message on the pipe and flush it."""
    payload: bytes = getattr(message, "payload", b"")
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message) if f.name != "payload"}
    plain = {name: _plain(value) for name, value in fields.items()}
    head = {"type": type(message).__name__, "payload_bytes": len(payload), "fields": plain}
    pipe.write(json.dumps(head).encode("ascii") + b"\n")
    pipe.write(payload)
    pipe.flush()


def read_message(pipe: BinaryIO) -> Message | None:
    """The next message, or None at the end of the pipe, also when it ends within a message."""
    line = pipe.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    payload = pipe.read(head["payload_bytes"])
    if len(payload) != head["payload_bytes"]:
        return None
    fields = head["fields"]
    if "model" in fields:
        table = fields["model"]
        loras = tuple((path, weight) for path, weight in table["loras"])
        fields["model"] = Sources(**{**table, "embeddings": tuple(table["embeddings"]), "loras": loras})
    if head["type"] == "Job":
        fields["request"] = _request(fields["request"])
        fields["plan"] = Plan(**{**fields["plan"], "reasons": tuple(fields["plan"]["reasons"])})
        fields |= {name: tuple(fields[name]) for name in ("checkpoints", "saved")}
        fields["tables"] = {stage: tuple(map(_row, rows)) for stage, rows in fields["tables"].items()}
    if head["type"] == "Count":
        fields["requests"] = tuple(map(_request, fields["requests"]))
    if payload:
        fields["payload"] = payload
    message: Message = _TYPES[head["type"]](**fields)
    return message


def _request(table: dict[str, Any]) -> Request:
    references = tuple((width, height) for width, height in table["references"])
    pairs = {name: table[name] and tuple(table[name]) for name in ("canvas", "original_size", "crop", "target_size")}
    hires = table["hires"] and Hires(**table["hires"])
    return Request(**{**table, **pairs, "references": references, "hires": hires})


def _plain(value: Any) -> Any:
    """A field as JSON has it: what is many and alike without its names."""
    if isinstance(value, WeightRow):
        return dataclasses.astuple(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value


def _row(row: list[Any]) -> WeightRow:
    part, name, shape, use, sees, stays = row
    return WeightRow(part, name, tuple(shape), use, tuple(sees), stays)
