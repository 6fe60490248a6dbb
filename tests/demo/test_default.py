"""Without --model the built-in one draws, says so once, and takes every option; its files are what they should be."""

from __future__ import annotations

import configparser
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.models import reference
from sdcli.models.header import read_header
from sdcli.models.hub_ids import parse_hub_ref
from sdcli.models.opened import open_model
from sdcli.settings import read_config
from sdcli.units import MIB
from tests.cli.conftest import Asked, Command, shell

MODELS = Path(reference.__file__).parent
MODEL = MODELS / reference.DEMO

FOX = "a fox on a blue background"
NOTICE = "no --model given"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "SDCLI_DEVICE": "cpu"}

LARGEST_BYTES = 32 * MIB
PEAK_MOST_BYTES = 600 * MIB

Ask = Callable[..., Asked]


def pixels(source: Path | bytes) -> tuple[str | None, tuple[int, int], bytes]:
    """Format, size and RGB of a picture."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.format, image.size, image.convert("RGB").tobytes()


def report(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """The JSON report of a run that went well."""
    assert done.returncode == 0, done.stderr
    table: dict[str, Any] = json.loads(done.stdout)
    return table


# What is said before the work begins


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the lines about the model."""
    lines: list[str] = []
    monkeypatch.setattr("sdcli.cli.say.say", lambda text, end="\n": lines.append(text + end))
    return lines


@pytest.fixture
def init(work: Path) -> Path:
    """A picture to edit."""
    Image.new("RGB", (256, 256), "navy").save(work / "init.png")
    return work / "init.png"


@pytest.mark.parametrize("command", ["txt2img", "img2img"])
def test_without_a_model_one_line_names_the_demo_and_how_to_get_a_real_one(
    asked: Ask, said: list[str], init: Path, command: str
) -> None:
    argv = [command, FOX, *(["-i", init] if command == "img2img" else [])]
    assert asked(*argv).task.model.ref == "demo"
    (line,) = said
    assert line.startswith(NOTICE) and line.endswith("\n") and line.count("\n") == 1 and line[:-1].isprintable()
    for words in ("demo", "Stable Diffusion 1.5", "sdcli models pull stable-diffusion-v1-5/", "--model"):
        assert words in line
    assert asked(*argv, "-q").task.model.ref == "demo" and len(said) == 1


def test_the_line_names_the_command_that_fetches_a_model_and_how_to_draw_with_it(asked: Ask, said: list[str]) -> None:
    asked("txt2img", FOX)
    repository = said[0].partition("sdcli models pull ")[2].partition(", then")[0]
    assert parse_hub_ref(repository) is not None
    assert said[0].rstrip().endswith(f"--model {repository}")


def test_a_model_of_ones_own_is_taken_without_a_word(
    asked: Ask, said: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config" / "sdcli" / "config.toml"
    config.parent.mkdir(parents=True)
    for ref in (str(tiny), "demo"):
        assert asked("txt2img", FOX, "--model", ref).task.model.ref == ref
        config.write_text(f"model = {json.dumps(ref)}\n")
        assert asked("txt2img", FOX).task.model.ref == ref
        config.unlink()
        monkeypatch.setenv("SDCLI_MODEL", ref)
        assert asked("txt2img", FOX).task.model.ref == ref
        monkeypatch.delenv("SDCLI_MODEL")
    assert said == []


def test_demo_is_the_built_in_model_also_where_a_folder_has_that_name(
    asked: Ask, sdcli: Command, tiny: Path, work: Path
) -> None:
    sdcli("txt2img", FOX, "-m", "./demo").refused(3, "no model './demo' on this disk")
    (work / "demo").symlink_to(tiny)
    assert asked("txt2img", FOX, "-m", "demo").task.model.path == MODEL.resolve()
    assert asked("txt2img", FOX, "-m", "./demo").task.model.path == tiny.resolve()


def test_the_picture_is_256_pixels_wide_and_high_unless_asked_for(asked: Ask) -> None:
    request = asked("txt2img", FOX).task.request
    assert (request.width, request.height) == (256, 256)
    request = asked("txt2img", FOX, "-W", "192").task.request
    assert (request.width, request.height) == (192, 256)


# Whole runs, as a user starts them


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """A picture without --model, and the folder that it is in."""
    work = tmp_path_factory.mktemp("first")
    return work, shell(
        work, "txt2img", FOX, "--seed", "5", "-s", "2", "--json", "-o", "fox.png", env=ONE_THREAD
    )  # fmt: skip


def test_without_a_model_the_demo_draws(first: tuple[Path, subprocess.CompletedProcess[bytes]]) -> None:
    work, done = first
    table = report(done)
    assert table["model"] == {"ref": "demo", "family": "sd", "sha256": None}
    assert table["images"] == [{"path": "fox.png", "seed": 5, "width": 256, "height": 256}]
    assert pixels(work / "fox.png")[:2] == ("PNG", (256, 256))
    assert 0 < table["memory"]["peak_bytes"] < PEAK_MOST_BYTES
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if "demo" in line and "--model" in line] == lines[:1]
    assert lines[0].startswith(NOTICE) and lines[1].startswith("demo on cpu in ")
    with Image.open(work / "fox.png") as image:
        assert json.loads(image.text["sdcli"])["model"] == "demo"


@pytest.mark.full
def test_named_it_draws_the_same_picture_without_the_line(
    first: tuple[Path, subprocess.CompletedProcess[bytes]], work: Path
) -> None:
    done = shell(work, "txt2img", FOX, "--seed", "5", "-s", "2", "-m", "demo", "-o", "-", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert pixels(done.stdout) == pixels(first[0] / "fox.png")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("demo on cpu in ") and not any(NOTICE in line for line in lines)


@pytest.mark.full
def test_it_takes_the_options_that_a_large_model_takes(work: Path) -> None:
    done = shell(
        work, "txt2img", FOX, "-n", "a dog", "-W", "192", "-H", "256", "-b", "2", "-s", "2", "-g", "5", "--seed", "8",
        "-o", "fox.jpg", "--json", "--mem-limit", "600MiB", "-q", env=ONE_THREAD,
    )  # fmt: skip
    table = report(done)
    assert done.stderr == b""
    assert [(image["path"], image["seed"]) for image in table["images"]] == [("fox-1.jpg", 8), ("fox-2.jpg", 9)]
    one, other = pixels(work / "fox-1.jpg"), pixels(work / "fox-2.jpg")
    assert one[:2] == other[:2] == ("JPEG", (192, 256)) and one[2] != other[2]
    memory = table["memory"]
    assert memory["limit_bytes"] == PEAK_MOST_BYTES
    assert 0 < memory["peak_bytes"] <= memory["predicted_peak_bytes"] <= PEAK_MOST_BYTES


@pytest.mark.full
def test_img2img_without_a_model_edits_with_the_demo(
    first: tuple[Path, subprocess.CompletedProcess[bytes]], work: Path
) -> None:
    init = first[0] / "fox.png"
    options = ["-i", init, "-s", "4", "--strength", "0.5", "--seed", "6", "--json", "-o", "red.webp"]
    done = shell(work, "img2img", "a fox on a red background", *options, env=ONE_THREAD)
    table = report(done)
    assert table["model"]["ref"] == "demo" and table["steps"]["count"] == 2
    assert [stage["name"] for stage in table["stages"]] == ["encode_prompt", "encode_image", "denoise", "decode"]
    kind, size, edited = pixels(work / "red.webp")
    assert (kind, size) == ("WEBP", (256, 256)) and edited != pixels(init)[2]
    assert done.stderr.decode().count(NOTICE) == 1 and 0 < table["memory"]["peak_bytes"] < PEAK_MOST_BYTES


# Its files


FILES = sorted(path for path in MODEL.rglob("*") if path.is_file())


def test_every_file_of_it_is_installed_with_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg", "utf-8")
    globs = config["options.package_data"].get("sdcli.models", "").replace("\n", ",").split(",")
    installed = {path for glob in map(str.strip, globs) if glob for path in MODELS.glob(glob)}
    assert FILES and [path for path in FILES if path not in installed] == []
    assert [path.name for path in FILES if path.name.startswith(".")] == []  # no glob of setuptools finds them


def test_it_has_a_card_and_a_licence_and_nothing_that_no_model_needs() -> None:
    names = {path.relative_to(MODEL).as_posix() for path in FILES}
    assert {"MODEL_CARD.md", "model_index.json"} <= names and names & {"LICENSE", "LICENSE.md"}
    assert {Path(name).suffix for name in names} <= {"", ".md", ".json", ".txt", ".safetensors", ".png"}
    texts = [path.read_text("utf-8") for path in FILES if path.parent == MODEL and path.suffix in ("", ".md")]
    words = " ".join(" ".join(texts).split())
    assert "Noto Color Emoji" in words and "Apache" in words and "Open Font License" in words
    assert "Not measured yet" not in words


def test_it_is_small_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in FILES) <= LARGEST_BYTES
    weights = [read_header(path) for path in FILES if path.suffix == ".safetensors"]
    assert len(weights) >= 3
    assert {info.dtype for file in weights for info in file.tensors.values()} == {"F16"}


def test_its_classes_are_those_of_stable_diffusion() -> None:
    model, large = open_model("demo", MODEL), read_config("models", "sd15")
    assert model.parts["unet"].class_name == large["unet"]["_class_name"]
    assert model.parts["vae"].class_name == large["vae"]["_class_name"]
    assert [model.parts["text_encoder"].class_name] == large["text_encoder"]["architectures"]
    assert model.parts["tokenizer"].class_name == large["tokenizer"]["tokenizer_class"]
    assert model.parts["scheduler"].class_name == large["scheduler"]["_class_name"]
    index = json.loads((MODEL / "model_index.json").read_text("utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
