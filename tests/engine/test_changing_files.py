"""A model whose files change while it is in use: what was opened at the start is drawn, or a line says what changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdcli.devices import open_device
from sdcli.engine.generate import generate
from sdcli.errors import SdcliError
from sdcli.messages import Message, PictureDone, StageBegan, StageEnded, StageLoaded, StepDone
from sdcli.models.opened import open_model
from sdcli.models.stamps import require_same, require_unchanged, stamps_of
from sdcli.weights.packed import can_map
from sdcli.weights.source import Source
from tests.support import ASTRONAUT, RESIDENT, STREAMED, job_of, pictures, run_engine

SHORT = replace(ASTRONAUT, steps=2)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def weights(model: Path, part: str) -> Path:
    (file,) = (model / part).glob("*.safetensors")
    return file


def rewrite(path: Path) -> None:
    """Another number in place, and the time of before."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\x00\x3c")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_another(path: Path) -> None:
    """As `hf download` and rsync do: another file takes the name."""
    other = path.with_name("incoming")
    shutil.copy2(path, other)
    rewrite(other)
    os.replace(other, path)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rewritten": rewrite,
    "replaced": replace_by_another,
    "truncated": truncate,
    "gone": lambda path: path.unlink(),
    "of another kind": lambda path: (path.unlink(), path.mkdir()),
}


def events(model: Path, plan: object = RESIDENT, **options: object) -> Iterator[Message]:
    device = open_device("cpu")
    device.prepare(None)
    job = job_of(model, SHORT, plan, stamps=dict(stamps_of(open_model("m", model))))  # type: ignore[arg-type]
    yield from generate(replace(job, **options), device)  # type: ignore[arg-type]


def run_and_change(
    going: Iterator[Message], after: Callable[[Message], bool], change: Callable[[], object]
) -> list[Message]:
    """Every event, with a change after the first of some kind."""
    told: list[Message] = []
    done = False
    for event in going:
        told.append(event)
        if not done and after(event):
            change()
            done = True
    assert done
    return told


def after_stage(name: str) -> Callable[[Message], bool]:
    return lambda event: isinstance(event, StageEnded) and event.name == name


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize(("part", "after"), [("vae", "denoise"), ("unet", "encode_prompt"), ("vae", "encode_prompt")])
def test_a_component_that_changes_before_its_stage_ends_the_run(model: Path, part: str, after: str, how: str) -> None:
    told: list[Message] = []
    with pytest.raises(SdcliError) as caught:
        for event in events(model):
            told.append(event)
            if after_stage(after)(event):
                CHANGES[how](weights(model, part))
    assert str(caught.value).startswith(f"the model changed while it was in use: '{part}/")
    assert "\n" not in str(caught.value) and not any(isinstance(event, PictureDone) for event in told)


@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_weights_that_change_while_they_stream_end_the_run(model: Path, how: str) -> None:
    with pytest.raises(SdcliError, match=r"the model changed .*unet/"):
        run_and_change(
            events(model, STREAMED),
            lambda event: isinstance(event, StepDone),
            lambda: CHANGES[how](weights(model, "unet")),
        )


def test_no_picture_comes_from_an_autoencoder_that_changed(model: Path) -> None:
    told: list[Message] = []
    with pytest.raises(SdcliError, match=r"the model changed .*vae/"):
        for event in events(model, request=replace(SHORT, count=3)):
            told.append(event)
            if isinstance(event, PictureDone):
                rewrite(weights(model, "vae"))
    assert len(pictures(told)) == 1


@pytest.mark.parametrize("how", CHANGES)
def test_what_is_in_memory_or_was_used_may_change(tiny: Path, model: Path, how: str) -> None:
    def change() -> None:
        for part in ("text_encoder", "unet"):
            CHANGES[how](weights(model, part))

    told = run_and_change(
        events(model), lambda event: isinstance(event, StageLoaded) and event.name == "denoise", change
    )
    assert torch.equal(pictures(told)[0], pictures(run_engine(tiny, SHORT))[0])


@pytest.mark.parametrize("file", ["tokenizer/vocab.json", "tokenizer/merges.txt"])
def test_a_tokenizer_that_changes_before_it_is_read_ends_the_run(model: Path, file: str) -> None:
    with pytest.raises(SdcliError, match=f"the model changed while it was in use: '{file}'; run again"):
        run_and_change(
            events(model), lambda event: isinstance(event, StageBegan), lambda: replace_by_another(model / file)
        )


@pytest.mark.parametrize("file", ["vae/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"])
def test_a_config_that_changed_since_the_host_read_it_ends_the_run(model: Path, file: str) -> None:
    stamps = dict(stamps_of(open_model("m", model)))
    (model / file).write_bytes((model / file).read_bytes() + b"\n")
    with pytest.raises(SdcliError, match=f"the model changed while it was in use: '{file}'; run again"):
        list(generate(job_of(model, SHORT, RESIDENT, stamps=stamps), open_device("cpu")))


def test_a_folder_that_is_swapped_ends_the_run(tiny: Path, model: Path, tmp_path: Path) -> None:
    def swap() -> None:
        os.rename(model, tmp_path / "old")
        shutil.copytree(tiny, model)

    with pytest.raises(SdcliError, match=r"the model changed while it was in use: 'vae/config\.json' and 1 more; run"):
        run_and_change(events(model), after_stage("denoise"), swap)


def test_a_folder_that_has_gone_ends_the_run(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SdcliError, match="the model changed while it was in use"):
        run_and_change(events(model), after_stage("denoise"), lambda: os.rename(model, tmp_path / "old"))


def test_a_second_worker_decodes_with_the_first_one_s_model_or_not_at_all(model: Path) -> None:
    stamps = dict(stamps_of(open_model("m", model)))
    told = list(events(model, part="latents"))
    blobs = [event.payload for event in told if isinstance(event, StepDone)][-1:]
    second = job_of(model, SHORT, RESIDENT, "fp32", (len(blobs[0]),), blobs[0], part="pictures", stamps=stamps)
    assert len(pictures(list(generate(second, open_device("cpu"))))) == 1
    replace_by_another(weights(model, "vae"))
    with pytest.raises(SdcliError, match=r"the model changed .*vae/"):
        list(generate(second, open_device("cpu")))


def test_weights_that_change_while_a_copy_is_made_leave_no_copy(model: Path, tmp_path: Path) -> None:
    if not can_map():
        pytest.skip("packed weights cannot be mapped here")
    copy = tmp_path / "cache" / "prepared" / "model" / "fp32-0123456789abcdef"

    def change(event: Message) -> bool:
        return isinstance(event, StageBegan) and event.name == "denoise"

    with pytest.raises(SdcliError, match="the model changed"):
        run_and_change(
            events(model, replace(STREAMED, prepared=True), prepared=str(copy)),
            change,
            lambda: rewrite(weights(model, "unet")),
        )
    assert not copy.exists() and not list(copy.parent.glob("*.part"))


def test_touching_and_adding_what_is_no_part_of_it_changes_nothing(model: Path) -> None:
    opened = open_model("m", model)
    stamps = stamps_of(opened)
    (model / "README.md").write_text("a model")
    (model / "unet" / "notes.bin").write_bytes(b"x")
    weights(model, "vae").read_bytes()
    require_unchanged(stamps, opened.parts["unet"], opened.parts["vae"], opened.parts["tokenizer"])
    require_same(stamps, stamps_of(open_model("m", model)))
    (model / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(SdcliError, match=r"tokenizer/tokenizer\.json"):
        require_unchanged(stamps, opened.parts["tokenizer"])


def test_what_the_library_says_of_a_file_that_it_cannot_map_is_one_line(model: Path) -> None:
    unet = open_model("m", model).parts["unet"]
    for change in ("truncated", "of another kind", "gone"):
        if weights(model, "unet").is_file():
            CHANGES[change](weights(model, "unet"))
        with pytest.raises(SdcliError, match=r"cannot read '.*: it changed or its disk failed"), Source(unet):
            pass
        if change == "of another kind":
            break
