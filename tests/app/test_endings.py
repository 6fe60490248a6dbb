"""However a run ends, what was denoised by then is decoded and saved, once, and the ending is what it was."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from sdcli import interrupts
from sdcli.app.record import RunRecord, Task
from sdcli.app.run import run_task
from sdcli.domain import Request
from sdcli.errors import CeilingCrossed, Interrupted, NotFinite, SdcliError, WillNotFit
from sdcli.host import watched
from sdcli.host.watchdog import Watchdog
from sdcli.messages import Message, PictureDone, StageBegan, StepDone
from sdcli.models.opened import open_model
from sdcli.plan.bytes import Subject
from sdcli.plan.ceiling import Ceiling
from sdcli.plan.planner import Planned, make_plan
from sdcli.plan.remembered import change_table
from tests.host.conftest import standing
from tests.host.conftest import task as task_of

THREE = Request("a red fox", "", 64, 64, 4, 7.5, 11, 3)

BODY = """
say(Ready("a script", "2.0"))
job = hear()
def latents(image):
    say(StepDone(image, 4, 4, 0.1, 0, b"checkpoint"))
    say(LatentsDone(image, b"latents %d" % image))
def draw(image):
    say(PictureDone(image, job.request.seed + image, 64, 64, b"latents %d" % image))
if job.part == "pictures":
    say(StageBegan("decode"))
    for at in range(0, len(job.payload), 9):
        draw(int(job.payload[at + 8 : at + 9]))
    say(Finished())
    time.sleep(600)
say(StageBegan("denoise"))
latents(0)
latents(1)
say(StepDone(2, 1, 4, 0.1, 0, b"checkpoint"))
MOMENT 0
latents(2)
say(StageEnded("denoise", 1.0))
say(StageBegan("decode"))
MOMENT 1
draw(0)
MOMENT 2
draw(1)
draw(2)
say(Finished())
time.sleep(600)
"""
"""Three pictures. The trouble comes at one of three moments: while the third is denoised, when all are, when one is
saved."""

ENDINGS: dict[str, tuple[str, type[BaseException], str]] = {
    "killed": ("os.kill(os.getpid(), 9)", SdcliError, "out-of-memory killer"),
    "crashed": ("os.kill(os.getpid(), 11)", SdcliError, "signal 11"),
    "ended": ("sys.exit(3)", SdcliError, "ended with code 3"),
    "not finite": ("say(Failed('NotFinite', 'NaN came out')); time.sleep(600)", NotFinite, "NaN came out"),
    "unforeseen": ("say(Failed('', 'KeyError')); time.sleep(600)", SdcliError, "the worker failed"),
    "crossed": (
        "kept = [b'x' * 2**21 for _ in range(600)]; time.sleep(600)",
        CeilingCrossed,
        "was crossed in the stage",
    ),
    "Ctrl-C": ("say(Notice('now')); time.sleep(600)", Interrupted, "interrupted"),
    "SIGTERM": ("say(Notice('now')); time.sleep(600)", Interrupted, "terminated"),
}


@dataclass
class Kept:
    """Keeps pictures in memory."""

    pictures: dict[int, bytes] = field(default_factory=dict)

    def __call__(self, picture: PictureDone, record: RunRecord) -> str:
        assert picture.image not in self.pictures, "saved twice"
        self.pictures[picture.image] = picture.payload
        return f"{picture.image}.png"


@pytest.fixture
def signals() -> Iterator[None]:
    """The program's own handlers, for as long as a test runs."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in (*interrupts.NAMES, "SIGALRM")}
    for name in interrupts.NAMES:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    interrupts.install()
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("moment", range(3), ids=["denoising the third", "all denoised", "one saved"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.every(2)
def test_what_was_denoised_is_saved_whatever_ends_the_run(
    tiny: Path,
    script: Callable[[str], None],
    signals: None,
    ending: str,
    moment: int,
) -> None:
    happens, kind, words = ENDINGS[ending]
    lines = BODY
    for number in range(3):
        lines = lines.replace(f"MOMENT {number}", happens if number == moment else "")
    script("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n" + lines)

    def show(message: Message, _: Watchdog) -> None:
        if getattr(message, "what", "") == "now":
            os.kill(os.getpid(), signal.SIGINT if ending == "Ctrl-C" else signal.SIGTERM)

    limit = standing() + 500 * 2**20 if ending == "crossed" else None
    asked, kept = task_of(tiny, limit, request=THREE, on_limit="kill"), Kept()
    record = RunRecord(asked)
    whole = moment > 0 and kind is SdcliError  # all that is lost is a worker that nothing is wanted of
    with nullcontext() if whole else pytest.raises(kind, match=words):
        run_task(asked, record, kept, show)
    assert any(words in what and "all pictures are saved" in what for _, what in record.events) == whole
    finished = [0, 1] if moment == 0 else [0, 1, 2]
    if ending == "not finite" and moment:  # by then it comes from the decoder, after all pictures that are finite
        finished = [0][: moment - 1]
    assert kept.pictures == {image: b"latents %d" % image for image in finished}
    assert [picture.image for _, picture in record.pictures] == finished
    assert any("decoding and saving first" in what for _, what in record.events) == (finished[1:] != [])


@pytest.mark.parametrize(
    "error", [SdcliError("disk full"), BrokenPipeError(), MemoryError("no room"), OSError(5, "bad")]
)
@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1, 2}], ids=str)
def test_a_picture_that_cannot_be_saved_is_no_reason_to_lose_the_others(
    tiny: Path,
    script: Callable[[str], None],
    error: Exception,
    failing: set[int],
) -> None:
    script(BODY.replace("MOMENT", "#"))
    kept = Kept()

    def save(picture: PictureDone, record: RunRecord) -> str:
        if picture.image in failing:
            raise error
        return kept(picture, record)

    asked = task_of(tiny, request=THREE)
    record = RunRecord(asked)
    with pytest.raises(type(error)) as caught:
        run_task(asked, record, save, lambda *_: None)
    assert caught.value is error
    assert set(kept.pictures) == {0, 1, 2} - failing
    assert len(record.events) == len(failing) - 1, "the others' failures are told as they come"


def test_a_signal_while_a_picture_is_saved_waits_until_it_is(
    tiny: Path,
    script: Callable[[str], None],
    signals: None,
) -> None:
    script(BODY.replace("MOMENT", "#"))
    kept = Kept()

    def save(picture: PictureDone, record: RunRecord) -> str:
        if picture.image == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return kept(picture, record)

    asked = task_of(tiny, request=THREE)
    with pytest.raises(Interrupted):
        run_task(asked, RunRecord(asked), save, lambda *_: None)
    assert set(kept.pictures) == {0, 1, 2}


def test_what_cannot_be_saved_in_the_end_either_is_told(tiny: Path, script: Callable[[str], None]) -> None:
    body = BODY.replace("MOMENT 0", "sys.exit(3)").replace("MOMENT", "#")
    script(body.replace("    for at in", "    sys.exit(4)\n    for at in"))
    asked = task_of(tiny, request=THREE)
    record = RunRecord(asked)
    with pytest.raises(SdcliError, match="ended with code 3"):
        run_task(asked, record, Kept(), lambda *_: None)
    assert any("2 pictures were not saved: the worker ended with code 4" in what for _, what in record.events)


def test_nobody_decodes_what_nobody_wants(tiny: Path, script: Callable[[str], None]) -> None:
    script(BODY.replace("MOMENT 0", "sys.exit(3)").replace("MOMENT", "#"))
    asked = task_of(tiny, request=THREE)
    record = RunRecord(asked)
    with pytest.raises(SdcliError, match="ended with code 3"):
        run_task(asked, record, None, lambda *_: None)
    assert record.pictures == [] and record.events == []


# The retry in fp32


RETRY = """
say(Ready("a script", "2.0"))
job = hear()
print(job.dtype, job.part, job.checkpoints, job.payload, file=open("jobs", "a"))
if job.dtype != "fp32" and job.part == "FAILS":
    say(StageBegan("denoise"))
    say(LatentsDone(0, b"latents 0"))
    say(StepDone(1, 1, 4, 0.1, 0, b"step 1 of 1"))
    say(Failed("NotFiniteInHalf", "NaN came out in bfloat16"))
    time.sleep(600)
if job.part != "pictures":
    [say(LatentsDone(image, b"latents %d" % image)) for image in range(3)]
if job.part != "latents":
    [say(PictureDone(image, 11 + image, 64, 64, b"p")) for image in range(3)]
say(Finished())
time.sleep(600)
"""


def test_a_denoise_that_is_not_finite_in_half_precision_goes_on_in_fp32(
    tiny: Path,
    script: Callable[[str], None],
) -> None:
    script(RETRY.replace("FAILS", "whole"))
    asked = replace(task_of(tiny, request=THREE), dtype="bf16")
    record, kept = RunRecord(asked), Kept()
    run_task(asked, record, kept, lambda *_: None)
    assert Path("jobs").read_text().splitlines() == [
        "bf16 whole () b''",
        f"fp32 latents (9, 11) {b'latents 0step 1 of 1'}",
        f"bf16 pictures (9, 9, 9) {b'latents 0latents 1latents 2'}",
    ]
    assert record.denoised_in == {0: "bf16", 1: "fp32", 2: "fp32"}
    assert record.events == [(None, "NaN came out in bfloat16: done again in fp32")] and len(kept.pictures) == 3


@pytest.mark.full
def test_numbers_that_are_none_in_fp16_are_finite_in_fp32_and_the_picture_says_so(tiny: Path, tmp_path: Path) -> None:
    """With weights as large as they come in some models: 65504 is the most that FP16 holds."""
    model = tmp_path / "large"
    shutil.copytree(tiny, model)
    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"].mul_(3e4)
    save_file({name: tensor.float() for name, tensor in tensors.items()}, file)
    asked = Task(open_model("large", model), replace(THREE, steps=2, count=1), "cpu", "fp16", Ceiling(None, ""))
    half, whole, kept, right = RunRecord(asked), RunRecord(replace(asked, dtype="fp32")), Kept(), Kept()
    told: list[Message] = []
    run_task(asked, half, kept, lambda message, _: told.append(message))
    run_task(whole.task, whole, right, lambda *_: None)
    assert half.denoised_in == {0: "fp32"}
    assert any("in float16: done again in fp32" in what for _, what in half.events)
    assert sum(isinstance(message, StepDone) for message in told) == 2
    assert [m.name for m in told if isinstance(m, StageBegan)][-1] == "decode" and len(kept.pictures[0]) == 64 * 64 * 3
    levels = [abs(one - other) for one, other in zip(kept.pictures[0], right.pictures[0], strict=True)]
    assert max(levels) <= 8, "decoded in half precision, else the same"


def test_where_fp32_does_not_fit_the_retry_says_so(
    tiny: Path, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(RETRY.replace("FAILS", "whole"))

    def plan(subject: Subject, *more: Any) -> Planned:
        if subject.dtype == "fp32":
            raise WillNotFit("will not fit: the stage denoise needs 9 GiB")
        return make_plan(subject, *more)

    monkeypatch.setattr("sdcli.app.means.make_plan", plan)
    asked = replace(task_of(tiny, request=THREE), dtype="bf16")
    with pytest.raises(NotFinite, match=r"came out in bf16, and fp32 will not fit: the stage \w+ needs"):
        run_task(asked, RunRecord(asked), Kept(), lambda *_: None)


def test_an_autoencoder_that_is_never_finite_is_asked_once_in_each_type(
    tiny: Path, script: Callable[[str], None]
) -> None:
    body = BODY.replace("MOMENT 1", 'say(Failed("NotFiniteInHalf" if job.dtype == "bf16" else "NotFinite", "NaN"))')
    body = body.replace("MOMENT", "#").replace("job = hear()", 'job = hear(); print(job.dtype, file=open("jobs", "a"))')
    script(body.replace("    for at in", '    say(Failed("NotFinite", "NaN in fp32 as well"))\n    for at in'))
    asked = replace(task_of(tiny, request=THREE), dtype="bf16")
    with pytest.raises(NotFinite, match="NaN in fp32 as well"):
        run_task(asked, RunRecord(asked), Kept(), lambda *_: None)
    assert Path("jobs").read_text().split() == ["bf16", "fp32"]


def test_what_prevents_the_rescue_is_told_and_the_trouble_stays(
    tiny: Path, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    script(BODY.replace("MOMENT 0", "sys.exit(3)").replace("MOMENT", "#"))
    real, begun = watched.Worker, []

    def start(*options: Any) -> Any:
        if begun:
            raise OSError(12, "Cannot allocate memory")
        begun.append(1)
        return real(*options)

    monkeypatch.setattr(watched, "Worker", start)
    asked = task_of(tiny, request=THREE)
    record = RunRecord(asked)
    with pytest.raises(SdcliError, match="ended with code 3"):
        run_task(asked, record, Kept(), lambda *_: None)
    assert any("not saved: [Errno 12]" in what for _, what in record.events)


@pytest.mark.timeout(60, method="thread")
def test_a_save_that_hangs_is_cut_off(
    tiny: Path, script: Callable[[str], None], signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE_S", 1)
    script(BODY.replace("MOMENT", "#"))

    def save(picture: PictureDone, record: RunRecord) -> str:
        if picture.image == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        return kept(picture, record)

    asked, kept = task_of(tiny, request=THREE), Kept()
    with pytest.raises(Interrupted, match="terminated"):
        run_task(asked, RunRecord(asked), save, lambda *_: None)
    assert set(kept.pictures) == {1, 2}


def test_a_signal_in_what_bears_failures_is_not_swallowed(signals: None) -> None:
    def change(table: dict[str, Any]) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"a": 1}

    with pytest.raises(Interrupted):
        change_table("speeds.json", change)
    assert not issubclass(Interrupted, Exception), "no boundary but the outermost takes it"


def test_a_piece_of_work_that_signals_wait_for_may_have_one_in_it(signals: None) -> None:
    done = []
    with pytest.raises(Interrupted), interrupts.deferred():
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest of the outer one")
    assert done
