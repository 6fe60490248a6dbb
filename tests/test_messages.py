"""Messages come out of the pipe as they went in, or not at all."""

from __future__ import annotations

import io
import json
from dataclasses import FrozenInstanceError, replace

import pytest

from sdcli import messages
from sdcli.domain import Plan, Request, Sources
from sdcli.messages import (
    Count,
    Counted,
    Failed,
    Finished,
    Job,
    LatentsDone,
    Message,
    Notice,
    PictureDone,
    Preview,
    Progress,
    Ready,
    Relieve,
    SelfTest,
    SelfTested,
    StageBegan,
    StageEnded,
    StageLoaded,
    Start,
    StepDone,
    Synthesize,
    Watched,
    read_message,
    write_message,
)
from sdcli.uses import WeightRow

REQUEST = Request("a fox", "", 64, 72, 4, 7.5, 0, 2, 0.25)
PLAN = Plan("partial", 123, "sequential", 456, ("one reason", "another"), {"decode": "recompute"})
ROWS = (
    WeightRow("unet", "conv_in.weight", (32, 4, 3, 3), "matrix", (1, 8, 8), True),
    WeightRow("unet", "conv_in.bias", (32,), "vector", (1, 1, 1), True),
)
SOURCES = Sources("/models/tiny", {"vae": "/models/vae.safetensors"}, "v")
JOB = Job(REQUEST, PLAN, SOURCES, "bf16", (3, 4), b"\n{}\n\x00\xff\n", tables={"denoise": ROWS})

EVERY = [
    Start("cpu", None),
    Start("mps", 2**31),
    Synthesize("sd15", "/tmp/half"),
    Count(Sources("/models/tiny"), (REQUEST, replace(REQUEST, width=128)), "fp32"),
    Counted(b"{}"),
    SelfTest("bf16", 2**20),
    SelfTested({"attention": 0.001}, 0.02, 7e9),
    Preview(1, 2, 1, b"rgbrgb"),
    JOB,
    replace(JOB, checkpoints=(), payload=b""),
    Relieve(),
    Watched(),
    Ready("a CPU", "2.13.0+cpu", 5),
    Progress(3, 10),
    StageBegan("denoise"),
    StageLoaded("decode", 0.25),
    StageEnded("encode_image", 1.5, 7),
    StepDone(0, 1, 20, 0.125, 2**33, b"checkpoint\n"),
    LatentsDone(1, b"checkpoint\n"),
    Preview(1, 8, 4, bytes(96)),
    PictureDone(1, 2**63, 64, 64, bytes(range(256)) * 48),
    Notice("something", 3),
    Notice("something"),
    Finished(),
    Failed("NotFinite", "a line", "Traceback\n  two lines"),
]


def through_the_pipe(*written: Message) -> list[Message | None]:
    """Every message read back, and the None at the end."""
    pipe = io.BytesIO()
    for message in written:
        write_message(pipe, message)
    pipe.seek(0)
    return [read_message(pipe) for _ in range(len(written) + 1)]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_equal_down_to_its_types(message: Message) -> None:
    back, end = through_the_pipe(message)
    assert back == message and repr(back) == repr(message)  # a list in place of a tuple would show
    assert end is None


def test_every_kind_of_message_is_tried_here() -> None:
    assert {type(message) for message in EVERY} == set(messages._TYPES.values())


def test_messages_follow_one_another_without_mixing() -> None:
    assert through_the_pipe(*EVERY) == [*EVERY, None]


def test_nested_values_are_what_they_were_and_stay_frozen() -> None:
    (back, _) = through_the_pipe(JOB)
    assert isinstance(back, Job)
    assert isinstance(back.request, Request) and back.request.seeds == range(2)
    assert isinstance(back.plan, Plan) and back.plan.reasons == ("one reason", "another")
    assert isinstance(back.checkpoints, tuple)
    hash((back.request, back.plan.reasons, back.checkpoints, back.tables["denoise"]))
    with pytest.raises(FrozenInstanceError):
        back.request.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("message", [JOB, Notice("x"), PictureDone(0, 1, 1, 1, b"\n\n\n")])
def test_a_pipe_that_ends_anywhere_within_a_message_has_no_message(message: Message) -> None:
    pipe = io.BytesIO()
    write_message(pipe, message)
    whole = pipe.getvalue()
    assert all(read_message(io.BytesIO(whole[:length])) is None for length in range(len(whole)))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("naïve 狐 🦊 \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}", id="unicode"),
        pytest.param("line\nbreak\r\u2028\u2029\x85", id="line breaks"),
        pytest.param("\x00\x1b[31m\x7f", id="control characters"),
        pytest.param("\udcff\ud800", id="lone surrogates"),
        pytest.param('"\\', id="quotes"),
    ],
)
def test_any_text_travels_on_one_line_of_ascii(text: str) -> None:
    job = replace(JOB, request=replace(REQUEST, prompt=text, negative=text), payload=b"")
    assert through_the_pipe(job, Notice(text)) == [job, Notice(text), None]
    pipe = io.BytesIO()
    write_message(pipe, job)
    assert pipe.getvalue().count(b"\n") == 1 and pipe.getvalue().isascii()


def test_a_message_is_flushed_at_once() -> None:
    raw = io.BytesIO()
    pipe = io.BufferedWriter(raw, buffer_size=2**20)
    write_message(pipe, Finished())
    assert json.loads(raw.getvalue())["type"] == "Finished"


@pytest.mark.parametrize("line", [b"garbage\n", b"[]\n", b'{"type": "Nope", "payload_bytes": 0, "fields": {}}\n'])
def test_what_is_no_message_is_never_taken_for_one(line: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        read_message(io.BytesIO(line))
