"""A picture is drawn again from its own metadata, with any option changed; what is not known of it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdcli.app.pictures import digests
from sdcli.cli.main import run
from sdcli.domain import Hires
from sdcli.images.metadata import Provenance
from tests.cli.conftest import Asked, Command, shell
from tests.images.test_masks import photo, spot
from tests.images.test_told import A1111, COMFY
from tests.laid_out import laid_out

Ask = Callable[..., Asked]


def png(path: str, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (64, 72)).save(path, pnginfo=info)
    return Path(path)


@pytest.mark.every(3)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_of_ours_comes_out_with_the_same_bits(tiny: Path, work: Path, suffix: str) -> None:
    argv = [
        "txt2img",
        "a (red:1.4) [fox|cat]: 🦊",
        "-n",
        "ugly",
        "-m",
        tiny,
        "-s",
        "3",
        "-g",
        "4.5",
        "--seed",
        "random",
    ]
    argv += [
        "--sampler",
        "DPM++ SDE Karras",
        "--size",
        "72x64",
        "--clip-skip",
        "2",
        "--dtype",
        "fp32",
        "--emphasis",
        "comfy",
    ]
    assert shell(work, *argv, "-o", f"one{suffix}").returncode == 0
    others = {"SDCLI_STEPS": "9", "SDCLI_NEGATIVE": "odd", "SDCLI_SAMPLER": "euler", "SDCLI_COUNT": "2"}
    others |= {"SDCLI_SCHEDULE": "beta", "SDCLI_CLIP_SKIP": "1", "SDCLI_PREDICTION": "v", "SDCLI_EMPHASIS": "none"}
    done = shell(work, "again", f"one{suffix}", "-o", f"two{suffix}", env=others)
    assert (done.returncode, done.stdout) == (0, f"two{suffix}\n".encode()), done.stderr
    assert b"warning" not in done.stderr and b"not known" not in done.stderr
    with Image.open(work / f"one{suffix}") as one, Image.open(work / f"two{suffix}") as two:
        assert one.tobytes() == two.tobytes()
    assert (work / f"one{suffix}").read_bytes() == (work / f"two{suffix}").read_bytes()


@pytest.mark.full
@pytest.mark.parametrize(
    "options",
    [
        ["--mask", "mask.png", "--mask-blur", "2", "--size", "64x80", "--fit", "pad", "--invert-mask"],
        ["--mask", "mask.png", "--outpaint", "0,8,32,0"],
        ["--mask", "mask.png", "--inpaint-area", "masked", "--outpaint", "16,0,0,0", "-W", "128", "-H", "64"],
        ["--outpaint", "0,0,0,24", "--mask-blur", "0"],
    ],
    ids=" ".join,
)
def test_what_was_drawn_within_a_mask_is_drawn_again_with_it(tiny: Path, work: Path, options: list[str]) -> None:
    photo().save(work / "init.png")
    spot().save(work / "mask.png")
    argv = [
        "img2img",
        "a fox",
        "-i",
        "init.png",
        *options,
        "-m",
        tiny,
        "-s",
        "3",
        "--strength",
        "0.7",
        "--dtype",
        "fp32",
    ]
    assert shell(work, *argv, "-o", "one.png").returncode == 0
    given = ["-i", "init.png", *options[:2]] if "--mask" in options else ["-i", "init.png"]
    done = shell(work, "again", "one.png", *given, "-o", "two.png")
    assert done.returncode == 0 and b"warning" not in done.stderr, done.stderr
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()


@pytest.mark.full
def test_another_mask_is_told_and_what_is_transparent_needs_none(tiny: Path, work: Path) -> None:
    transparent = photo()
    transparent.putalpha(spot().point([255 - level for level in range(256)]))
    transparent.save(work / "init.png")
    spot(box=(8, 8, 40, 40)).save(work / "other.png")
    argv = ["img2img", "a fox", "-i", "init.png", "--mask", "alpha", "-m", tiny, "-s", "2", "--dtype", "fp32"]
    assert shell(work, *argv, "-o", "one.png").returncode == 0
    done = shell(work, "again", "one.png", "-i", "init.png", "-o", "two.png")
    assert done.returncode == 0 and b"warning" not in done.stderr, done.stderr
    assert (work / "one.png").read_bytes() == (work / "two.png").read_bytes()
    done = shell(work, "again", "one.png", "-i", "init.png", "--mask", "other.png", "-o", "three.png")
    assert done.returncode == 0 and b"the mask is not the one that the picture was drawn with" in done.stderr


RECORD: dict[str, Any] = {
    "schema": "sdcli.image/1",
    "prompt": "a (fox) <lora:gone:1>",
    "negative": "ugly",
    "steps": 7,
    "sampler": "DDIMScheduler",
    "guidance": 3.5,
    "seed": 2**64 - 1,
    "width": 64,
    "height": 72,
    "model_digest": None,
    "clip_skip": 2,
    "device": "cpu",
    "dtype": "fp32",
    "embeddings": [],
    "parts": {},
    "loras": [],
    "strength": None,
}


@pytest.fixture
def record(tiny: Path) -> dict[str, Any]:
    return {**RECORD, "model": str(tiny)}


def test_all_that_it_says_comes_to_the_task_and_options_go_before_it(
    asked: Ask, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDCLI_GUIDANCE", "9")
    monkeypatch.setenv("SDCLI_SAMPLER", "Euler")
    path = png("a.png", sdcli=json.dumps({**record, "emphasis": "a1111", "schedule": "trailing"}))
    request = asked("again", path).task.request
    assert (request.prompt, request.negative, request.steps, request.guidance) == ("a (fox)", "ugly", 7, 3.5)
    assert (request.seed, request.width, request.height, request.clip_skip) == (2**64 - 1, 64, 72, 2)
    assert (request.sampler, request.schedule, request.emphasis, request.count) == (None, "trailing", "a1111", 1)
    changed = asked(
        "again", path, "-p", "a cat", "--size", "80x64", "-s", "3", "--seed", "1", "-b", "2", "--sampler", "lms"
    )
    request = changed.task.request
    assert (request.prompt, request.steps, request.width, request.height) == ("a cat", 3, 80, 64)
    assert (list(request.seeds), request.sampler, request.guidance) == ([1, 2], "LMS", 3.5)


def test_all_that_our_pictures_say_is_known(
    asked: Ask, record: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    said = {**{one.name: None for one in fields(Provenance)}, **record, "emphasis": "a1111"}
    run(["again", str(png("a.png", sdcli=json.dumps(said)))])
    err = capfd.readouterr().err
    assert "Error" not in err and "not known" not in err


def test_another_embedding_of_the_same_name_is_told(
    asked: Ask, record: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "hat.safetensors"
    file.write_bytes(laid_out({"emb_params": ("F32", [1, 32])}))
    said = {**record, "prompt": "a hat", "embeddings": [str(file)], "embedding_sha256": digests([str(file)])}
    path = png("a.png", sdcli=json.dumps(said))
    run(["again", str(path), "-o", "b.png"])
    assert "embedding" not in capfd.readouterr().err
    file.write_bytes(laid_out({"emb_params": ("F32", [2, 32])}))
    run(["again", str(path), "-o", "c.png"])
    assert "the embedding 'hat' is not the one that the picture was drawn with" in capfd.readouterr().err


def test_what_a_record_lacks_may_be_given(asked: Ask, sdcli: Command, record: dict[str, Any]) -> None:
    lacking = {name: value for name, value in record.items() if name not in ("steps", "prompt", "width")}
    path = png("a.png", sdcli=json.dumps(lacking))
    sdcli("again", path, "-s", "3", "-p", "a cat").refused(2, "lacks width: it was changed; give it as an option")
    request = asked("again", path, "-s", "3", "-p", "a cat", "--size", "80x64").task.request
    assert (request.prompt, request.steps, request.width, request.height) == ("a cat", 3, 80, 64)
    path = png("b.png", sdcli=json.dumps({**record, "loras": [{"name": "fur", "weight": 1}]}))
    sdcli("again", path, "--lora", "gone.safetensors").refused(1, "gone.safetensors': No such file")


def test_brackets_of_pictures_before_there_were_weights_are_words(asked: Ask, record: dict[str, Any]) -> None:
    assert asked("again", png("a.png", sdcli=json.dumps(record))).task.request.emphasis == "none"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 10**9}, "the picture's steps: 1000000000 is not from 1 to 1000"),
        ({"width": 513}, "the picture's width: 513 is not a multiple of 8"),
        ({"guidance": "nan"}, "the picture's guidance: 'nan' is not a number"),
        ({"seed": True}, "the picture's seed"),
        ({"dtype": "int4"}, "the picture's dtype"),
        ({"emphasis": "loud"}, "the picture's emphasis"),
        ({"prompt": None}, "the picture's record lacks prompt"),
        ({"prompt": "x" * 70_000}, "the picture's prompt: the text has 70000 bytes"),
        ({"init_sha256": "0" * 64, "strength": 0.5}, "give that as --init"),
        ({"init_sha256": "0" * 64, "mask": "picture"}, "give that as --init, its mask as --mask"),
        ({"reference_sha256": ["0" * 64] * 2}, "give what it went by as --ref, 2 times"),
        ({"fit": "loose"}, "the picture's fit"),
        ({"mask_blur": 65}, "the picture's mask_blur"),
        ({"invert_mask": "perhaps"}, "the picture's invert_mask"),
        ({"outpaint": [0, 0, 10**6, 0]}, "the picture's outpaint"),
        ({"outpaint": [0, 0, 64, 0], "inpaint_area": "whole"}, "the picture's width: 0 "),
        ({"loras": [{"name": "fur", "weight": 1}]}, "names the LoRA 'fur' and not its file: give --lora"),
        ({"model": "\x1b[2J"}, "no model"),
    ],
)
def test_a_record_that_was_changed_is_refused_in_one_line(
    sdcli: Command, record: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    outcome = sdcli("again", png("a.png", sdcli=json.dumps({**record, **change})))
    outcome.refused(3 if "model" in change else 2, said)


@pytest.mark.parametrize("sampler", [{"a": [1]}, [1], 7, None])
def test_a_sampler_that_is_no_name_is_told(sdcli: Command, record: dict[str, Any], sampler: object) -> None:
    change = {"sampler": sampler, "loras": 5, "width": 513}
    outcome = sdcli("again", png("a.png", sdcli=json.dumps({**record, **change})))
    first, last = outcome.err.splitlines()
    assert outcome.code == 2 and "is not known: the model's own is taken" in first and "513 is not a multiple" in last


def test_what_is_another_is_told(asked: Ask, record: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 72)).save("init.png")
    other = {"model_digest": "0" * 64, "device": "cuda", "init_sha256": "0" * 64, "strength": 0.3, "odd": 1}
    path = png("a.png", sdcli=json.dumps({**record, **other}))
    run(["again", str(path), "-i", "init.png"])
    err = capfd.readouterr().err
    for line in (
        "odd is not known here",
        "is not the one that drew the picture",
        "the init image is not the one",
        "the picture was drawn on cuda in fp32",
    ):
        assert line in err


def test_a1111s_picture_is_drawn_as_far_as_it_is_known(
    asked: Ask, tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = png("a.png", parameters=A1111.replace("<lora:fur:0.8>", ""))
    request = asked("again", path, "-m", tiny).task.request
    assert (request.sampler, request.schedule, request.width, request.height) == ("DPM++ 2M", "karras", 512, 768)
    assert (request.negative, request.strength, request.clip_skip) == ("ugly, blurred: very", None, 2)
    assert request.hires == Hires(1024, 1536, 25, 0.7, "latent")


@pytest.mark.parametrize(
    ("settings", "hires", "said"),
    [
        ("Hires resize: 576x832, Hires steps: 9, Hires upscaler: Lanczos", Hires(576, 832, 9, 0.7, "lanczos"), ""),
        ("Hires upscale: 1.5, Hires steps: 0", Hires(768, 1152, 25, 0.7, "latent"), ""),
        ("Hires upscale: 2, Hires upscaler: 4x-UltraSharp", Hires(1024, 1536, 25, 0.7, "lanczos"), "'4x-UltraSharp'"),
        ("Hires upscale: 2, Hires upscaler: Latent (bicubic)", Hires(1024, 1536, 25, 0.7, "latent"), "is not here"),
        ("Hires resize: 0x1024, Hires steps: 9", None, "a side of which is not told"),
    ],
)
def test_a1111s_second_round(
    asked: Ask, tiny: Path, monkeypatch: pytest.MonkeyPatch, settings: str, hires: Hires | None, said: str
) -> None:
    notes = list[str]()
    monkeypatch.setattr("sdcli.cli.say.Voice.tell", lambda self, note: notes.append(note.what))
    text = A1111.replace("<lora:fur:0.8>", "").replace("Hires upscale: 2", settings)
    assert asked("again", png("a.png", parameters=text), "-m", tiny).task.request.hires == hires
    assert said in "\n".join(notes)


def test_a1111s_picture_from_another_picture_is_told(asked: Ask, tiny: Path, sdcli: Command) -> None:
    text = A1111.replace("<lora:fur:0.8>", "").replace("Hires upscale: 2, ", "")
    err = sdcli("again", png("a.png", parameters=text), "-m", tiny, "--mem-limit", "100MiB").err
    assert "give that as --init, or it is drawn from words" in err


@pytest.mark.full
def test_what_is_not_known_of_anothers_picture_is_told(sdcli: Command, tiny: Path) -> None:
    path = png("a.png", parameters=A1111.replace("DPM++ 2M", "Warp 9").replace("<lora:fur:0.8>", ""))
    err = sdcli("again", path, "-m", tiny, "--mem-limit", "100MiB").err
    for line in (
        "its sampler 'Warp 9' is not known: the model's own is taken",
        "not honoured: ADetailer prompt",
        "expect another picture of the same kind",
    ):
        assert line in err


def test_comfyuis_picture(asked: Ask, tiny: Path) -> None:
    request = asked("again", png("a.png", prompt=json.dumps(COMFY)), "-m", tiny, "-s", "3").task.request
    assert (request.prompt, request.emphasis, request.sampler, request.steps) == ("a fox", "comfy", "DPM++ 2M", 3)


def test_what_is_given_is_not_asked_for(sdcli: Command, tiny: Path) -> None:
    text = A1111.replace("DPM++ 2M", "Warp 9").replace("<lora:fur:0.8>", "").replace("Size: 512x768, ", "")
    options = ["-m", tiny, "--sampler", "euler", "--size", "64x64", "--hires", "2x", "--hires-upscaler", "latent"]
    err = sdcli("again", png("a.png", parameters=text), *options, "--mem-limit", "100MiB").err
    assert "expect another picture of the same kind" in err
    for line in ("its sampler", "its model", "its size", "its upscaler"):
        assert line not in err


def test_info_prints_what_a_picture_says(sdcli: Command, record: dict[str, Any]) -> None:
    path = png("a.png", sdcli=json.dumps({**record, "prompt": "two\nlines \x1b[2J"}))
    lines = sdcli("info", path).out.splitlines()
    assert lines[0] == "PNG, 64x72, written by sdcli" and "steps: 7" in lines
    assert r"prompt: two\nlines \x1b[2J" in lines
    report = json.loads(sdcli("info", path, "--json").out)
    assert (report["schema"], report["writer"], report["said"]["seed"]) == ("sdcli.told/1", "sdcli", 2**64 - 1)
    other = json.loads(sdcli("info", png("b.png", parameters=A1111), "--json").out)
    assert (other["writer"], other["said"]["steps"], other["said"]["hires"]) == ("a1111", "25", "2")


@pytest.mark.parametrize("command", ["info", "again"])
def test_a_picture_that_says_nothing_is_one_line(sdcli: Command, command: str) -> None:
    sdcli(command, png("a.png")).refused(1, "does not say how it was made")
    sdcli(command, "gone.png").refused(2, "'gone.png' is not a file")
    sdcli(command).refused(2, "PICTURE")
