"""What both text encoders made of a prompt is kept, and whatever changes it is in its key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.devices import open_device
from sdcli.domain import Request, Sources
from sdcli.engine.encodings import _key
from sdcli.engine.work import Work
from sdcli.families.registry import family_of
from sdcli.messages import Job
from sdcli.models.opened import open_model
from sdcli.models.stamps import stamps_of
from tests.engine.test_encodings import kept_files, lent, was_kept
from tests.families.sdxl.test_changes import inversion
from tests.families.sdxl.test_pictures import PLANS, REQUEST
from tests.loras import write_lora
from tests.support import RESIDENT, pictures, run_engine

__all__ = ["lent"]

run = partial(run_engine, keeps=True)
SHORT = replace(REQUEST, width=64, steps=2)


@pytest.mark.full
def test_the_second_picture_of_a_prompt_begins_at_denoising(xl: Path, lent: list[str]) -> None:
    first = run(xl, SHORT)
    assert not was_kept(first) and {"text_encoder", "text_encoder_2"} <= {*lent}
    lent.clear()
    second = run(xl, SHORT)
    assert was_kept(second) and lent == ["unet", "vae"]
    assert torch.equal(pictures(second)[0], pictures(first)[0])


@pytest.mark.parametrize("name", ["after each piece, one by one", "some of it, decoded in less"])
@pytest.mark.every(2)
def test_the_bits_are_the_same_under_every_ceiling(xl: Path, name: str) -> None:
    request = replace(SHORT, prompt="a (fox:1.3) in [rain:snow:1]")
    whole = pictures(run(xl, request))[0]
    again = run(xl, request, PLANS[name])
    assert was_kept(again) and torch.equal(pictures(again)[0], whole)
    assert torch.equal(pictures(run_engine(xl, request, PLANS[name]))[0], whole)


def key(where: Path | Sources, request: Request) -> str:
    """What the first stage's gift is kept by."""
    stamps_of.cache_clear()
    model = open_model("m", where if isinstance(where, Sources) else Sources(str(where)))
    work = Work.of(Job(request, RESIDENT, model.sources, "fp32"), model, open_device("cpu"))
    return _key(work, family_of(model).stages(model, request)[0])


TURNING = replace(SHORT, prompt="a (fox:1.3) in [rain:snow:1]", steps=4)


@pytest.mark.parametrize(
    "change",
    [
        {"emphasis": "comfy"},
        {"emphasis": "none"},
        {"clip_skip": 3},
        {"steps": 3},
        {"negative": ""},
        {"guidance": 1.0},
        {"prompt": "a (fox:1.3) in [rain:snow:2]"},
    ],
    ids=repr,
)
def test_another_encoding_has_another_key(xl: Path, change: dict[str, Any]) -> None:
    assert key(xl, replace(TURNING, **change)) != key(xl, TURNING)


def test_what_words_do_not_go_by_has_no_say(xl: Path) -> None:
    assert key(xl, replace(SHORT, steps=3, seed=9, guidance=3.0, count=2, height=128, strength=0.5)) == key(xl, SHORT)
    assert key(xl, replace(SHORT, guidance=1.0)) == key(xl, replace(SHORT, guidance=1.0, negative="any"))


def with_words(xl: Path, path: Path) -> Sources:
    inversion(path)
    return Sources(str(xl), embeddings=(str(path),))


def with_lora(xl: Path, path: Path) -> Sources:
    write_lora(xl, path)
    return Sources(str(xl), loras=((str(path), 1.0),))


@pytest.mark.parametrize("added", [with_words, with_lora], ids=["embedding", "LoRA"])
def test_what_is_in_added_files_counts(xl: Path, tmp_path: Path, added: Callable[[Path, Path], Sources]) -> None:
    path = tmp_path / "foxy.safetensors"
    sources = added(xl, path)
    before = key(sources, SHORT)
    assert before != key(xl, SHORT) and before == key(sources, SHORT)
    tensors = {name: -one for name, one in load_file(path).items()}
    save_file(tensors, tmp_path / "other")
    os.replace(tmp_path / "other", path)
    assert key(sources, SHORT) != before


def test_how_much_of_a_lora_counts(xl: Path, tmp_path: Path) -> None:
    sources = with_lora(xl, tmp_path / "x.safetensors")
    half = replace(sources, loras=((sources.loras[0][0], 0.5),))
    assert key(half, SHORT) != key(sources, SHORT)


def test_what_an_index_says_of_empty_prompts_counts(xl: Path, tmp_path: Path) -> None:
    copy, request = shutil.copytree(xl, tmp_path / "copy"), replace(SHORT, negative="")
    before = key(copy, request)
    index = json.loads((copy / "model_index.json").read_text("utf-8"))
    (copy / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}), "utf-8")
    assert key(copy, request) != before


def test_stable_diffusion_keeps_its_words_too(tiny: Path, lent: list[str]) -> None:
    first = run(tiny, SHORT)
    lent.clear()
    second = run(tiny, SHORT)
    assert was_kept(second) and lent == ["unet", "vae"] and len(kept_files()) == 1
    assert torch.equal(pictures(second)[0], pictures(first)[0])
