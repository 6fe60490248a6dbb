"""LoRAs on the command line: by file, by name in the prompt, from the environment and the config file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdcli.app.asked import Asked as AskedFor
from sdcli.app.asked import Note
from sdcli.app.loras import weight_of, without_tags
from sdcli.app.tasks import prepare
from sdcli.cli.types import LoraFile
from tests.cli.conftest import Asked, Command, shell
from tests.cli.test_runs import pixels
from tests.loras import write_lora

Ask = Callable[..., Asked]


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A folder with two LoRAs, one of them in another folder inside."""
    folder = tmp_path / "some loras"
    (folder / "people").mkdir(parents=True)
    write_lora(tiny, folder / "style.safetensors", wanted=lambda name: "attn2" in name)
    write_lora(tiny, folder / "people" / "old man.safetensors", seed=5, wanted=lambda name: "attn1" in name)
    return folder


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.8", ("a.safetensors", 0.8)),
        ("a.safetensors:-.5", ("a.safetensors", -0.5)),
        ("a.safetensors:0", ("a.safetensors", 0.0)),
        ("a:b:1e-1", ("a:b", 0.1)),
        (r"C:\loras\a.safetensors", (r"C:\loras\a.safetensors", 1.0)),
        (r"C:\loras\a.safetensors:2", (r"C:\loras\a.safetensors", 2.0)),
        ("a:nan", ("a:nan", 1.0)),
        ("a:inf", ("a:inf", 1.0)),
        ("a:1e999", ("a:1e999", 1.0)),
        ("a:1_0", ("a:1_0", 1.0)),
        ("a:", ("a:", 1.0)),
        (":1", (":1", 1.0)),
    ],
)
def test_the_last_colon_counts_if_a_number_follows(given: str, taken: tuple[str, float]) -> None:
    assert LoraFile().convert(given, None, None) == taken == LoraFile().convert(taken, None, None)


def test_a_weight_is_a_finite_decimal_number() -> None:
    assert [weight_of(text) for text in ("1", "+2.", " .5 ", "-1E2")] == [1, 2, 0.5, -100]
    assert [weight_of(text) for text in ("", "x", "0x1", "nan", "-inf", "1,5", "٣", "1e999")] == [None] * 8


def test_files_and_names_are_taken_in_order_and_the_words_are_left(asked: Ask, tiny: Path, folder: Path) -> None:
    prompt = "a fox <lora:style:0.5>, red <lora:people/old man:-1> <LORA:old man>"
    style = folder / "style.safetensors"
    found = asked("txt2img", prompt, "-m", tiny, "--lora", f"{style}:0.3", "--lora", style, "--lora-dir", folder)
    man = folder / "people" / "old man.safetensors"
    expected = ((str(style), 0.3), (str(style), 1.0), (str(style), 0.5), (str(man), -1.0), (str(man), 1.0))
    assert found.task.model.sources.loras == expected
    assert found.task.request.prompt == "a fox , red" and found.task.written == prompt


def test_they_come_from_environment_and_config_file_as_well(
    asked: Ask, tiny: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style, man = str(folder / "style.safetensors"), str(folder / "people" / "old man.safetensors")
    config = tmp_path / "config" / "sdcli" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"lora = [{json.dumps(style)}, {json.dumps(man + ':2')}]\nlora-dir = {json.dumps(str(folder))}\n")
    plain = ("txt2img", "a", "-m", tiny)
    assert asked(*plain).task.model.sources.loras == ((style, 1.0), (man, 2.0))
    config.write_text(f"lora = {json.dumps(style)}\nlora_dir = {json.dumps(str(folder))}\n")
    assert asked("txt2img", "<lora:old man>", "-m", tiny).task.model.sources.loras == ((style, 1.0), (man, 1.0))
    monkeypatch.setenv("SDCLI_LORA", f"{style}:0.1;{man}")
    assert asked(*plain).task.model.sources.loras == ((style, 0.1), (man, 1.0))
    assert asked(*plain, "--lora", man).task.model.sources.loras == ((man, 1.0),)
    config.write_text("")
    monkeypatch.delenv("SDCLI_LORA")
    monkeypatch.setenv("SDCLI_LORA_DIR", str(folder))
    assert asked("txt2img", "<lora:style>", "-m", tiny).task.model.sources.loras == ((style, 1.0),)


@pytest.mark.parametrize(
    ("prompt", "code", "words"),
    [
        ("<lora:styel:1>", 2, ("no LoRA 'styel'", "the nearest is 'style'")),
        ("<lora:zzz>", 2, ("no LoRA 'zzz'", "there are 'old man', 'people/old man', 'style'")),
        ("<lora:style:much>", 2, ("'<lora:style:much>' in the prompt is no LoRA", "write <lora:name:0.8>")),
        ("<lora::1>", 2, ("is no LoRA",)),
        ("<lora:style:1:2>", 2, ("is no LoRA",)),
    ],
)
def test_a_name_that_is_not_there_or_no_tag_is_refused(
    sdcli: Command, tiny: Path, folder: Path, prompt: str, code: int, words: tuple[str, ...]
) -> None:
    sdcli("txt2img", prompt, "-m", tiny, "--lora-dir", folder).refused(code, *words)


def test_other_refusals_say_what_to_do(sdcli: Command, tiny: Path, folder: Path) -> None:
    plain = ("txt2img", "a", "-m", tiny)
    sdcli("txt2img", "<lora:style>", "-m", tiny).refused(2, "asks for the LoRA 'style'", "--lora-dir")
    sdcli("txt2img", "<lora:style>", "-m", tiny, "--lora-dir", "no/where").refused(1, "--lora-dir 'no/where'")
    sdcli(*plain, "--lora", "nowhere.safetensors").refused(1, "cannot read", "nowhere.safetensors")
    sdcli(*plain, "--lora", "").refused(2, "--lora")
    sdcli("txt2img", "a", "-m", "demo", "--lora", folder / "style.safetensors").refused(1, "give a LoRA for this model")
    shutil.copy(folder / "style.safetensors", folder / "people" / "style.safetensors")
    twice = sdcli("txt2img", "<lora:style>", "-m", tiny, "--lora-dir", folder)
    twice.refused(2, "there are 2 LoRAs 'style'", "'people/style'")


def test_a_tag_in_the_negative_prompt_is_told_to_be_words(tiny: Path) -> None:
    told: list[Note] = []
    task = prepare(AskedFor("a", seed=7, negative="<lora:x:1>", model=str(tiny)), told.append)
    assert task.request.negative == "<lora:x:1>"
    assert any(note.kind == "warning" and "read as words" in note.what for note in told)


def test_a_prompt_without_tags_is_left_alone() -> None:
    assert without_tags("  a <b:c> fox ") == "  a <b:c> fox "
    assert without_tags("<lora:a>") == ""


@pytest.mark.full
def test_a_run_draws_with_them_and_picture_and_report_say_so(tiny: Path, folder: Path, work: Path) -> None:
    prompt = "a fox <lora:style:0.5>"
    size = ("-W", "64", "-H", "64", "-s", "2", "--seed", "7", "--dtype", "fp32", "-m", tiny)
    options = (*size, "--lora-dir", folder, "--lora", f"{folder / 'people' / 'old man.safetensors'}:2")
    done = shell(work, "txt2img", prompt, *options, "-o", "fox.png", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [(Path(lora["file"]).name, lora["weight"]) for lora in report["model"]["loras"]] == [
        ("old man.safetensors", 2.0),
        ("style.safetensors", 0.5),
    ]
    for stage in report["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["predicted_peak_bytes"]
    with Image.open(work / "fox.png") as image:
        told, text = json.loads(image.text["sdcli"]), image.text["parameters"]
    assert told["prompt"] == prompt and text.startswith(prompt + "\nSteps: 2")
    assert [(lora["name"], lora["weight"]) for lora in told["loras"]] == [("old man", 2.0), ("style", 0.5)]
    hashes = [lora["sha256"][:12] for lora in told["loras"]]
    assert re.search(rf'Lora hashes: "old man: {hashes[0]}, style: {hashes[1]}"', text)

    plain = shell(work, "txt2img", "a fox", *size, "-o", "plain.png")
    none = shell(work, "txt2img", "a fox <lora:style:0>", *size, "--lora-dir", folder, "-o", "none.png")
    assert plain.returncode == none.returncode == 0
    assert pixels(work / "plain.png") == pixels(work / "none.png") != pixels(work / "fox.png")
    foretold = shell(work, "plan", prompt, *options, "--json")
    assert json.loads(foretold.stdout)["model"] == report["model"]
