"""Scripts of benchmarks/ start, what they import when they get so far is there, and peers are run as they should be."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks import peers
from benchmarks.peers import Job
from benchmarks.theirs import by_diffusers, by_openvino
from benchmarks.trees import Watched, watched
from sdcli.engine.synthesize import write_model
from tests.families.flux2.klein import KLEIN
from tests.families.zimage.tiny import TINY as Z_IMAGE

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.relative_to(FOLDER.parent).with_suffix("").as_posix() for path in FOLDER.rglob("*.py"))
OURS = ("sdcli", "tests", "training", "benchmarks")


def source_of(script: str) -> str:
    return (FOLDER.parent / f"{script}.py").read_text("utf-8")


def imported(script: str) -> Iterator[tuple[str, str]]:
    """Module and name of all that a script imports of ours, in functions as well."""
    for node in ast.walk(ast.parse(source_of(script))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in OURS:
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_a_script_imports_of_ours_is_there(script: str) -> None:
    if script == "benchmarks/charts" or "benchmarks.charts" in dict(imported(script)):
        pytest.importorskip("matplotlib")
    for module, name in imported(script):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "ArgumentParser" in source_of(script)])
def test_a_script_tells_its_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(script.replace("/", "."))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    assert "--help" in capsys.readouterr().out


class Watching:
    """Stands for a command that has ended with an output."""

    def __init__(self, out: str, code: int = 0) -> None:
        self.out, self.errors, self.code, self.trouble = out, "", code, "its last line"

    def __call__(self, command: list[str], scratch: Path) -> Watching:
        self.command = command
        return self


JOB = Job("sd15", Path("model"), 256, 192, 4, "bf16", Path("scratch"))


def test_stable_diffusion_cpp_s_own_words_tell_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Watching(
        "[INFO ] stable-diffusion.cpp:1466 - sampling completed, taking 6.00s\n"
        "[INFO ] stable-diffusion.cpp:1491 - decode_first_stage completed, taking 2.50s\n"
    )
    monkeypatch.setattr(peers, "watched", done)
    step_s, decode_s, _ = peers.by_sd_cpp("sd-cli", JOB)
    assert (step_s, decode_s) == (1.5, 2.5)
    assert done.command[:3] == ["sd-cli", "-m", "model"]


def test_text_encoders_get_the_names_of_published_files(tiny: Path, tmp_path: Path) -> None:
    published = peers.named_as_published(tiny, tmp_path / "published")
    (text, named), (unet, same) = (
        [set(load_file(folder / file)) for folder in (tiny, published)]
        for file in ("text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors")
    )
    assert {f"text_model.{name.removeprefix('text_model.')}" for name in text} == named and unet == same
    again = peers.named_as_published(published, tmp_path / "again")
    assert set(load_file(again / "text_encoder/model.safetensors")) == named


@pytest.mark.parametrize("done", [Watching("no such word"), Watching("", code=1)])
def test_a_peer_that_fails_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: Watching
) -> None:
    monkeypatch.setattr(peers, "watched", done)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(peers, "named_as_published", lambda folder, into: folder)
    monkeypatch.setattr(peers, "ours", lambda limit, job: (1.0, 2.0, Watched(0, "", "", 3.0, 4, 5)))
    runs = peers.measured(JOB, ["1GiB", "2GiB"], ["stable-diffusion.cpp"], rounds=2)
    assert {name: one.step_s for name, one in runs.items()} == {"1GiB": [1.0, 1.0], "2GiB": [1.0, 1.0]}
    assert capsys.readouterr().out.count("stable-diffusion.cpp is left out: its last line") == 1


def test_stable_diffusion_cpp_gets_z_image_s_files_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done = Watching("sampling completed, taking 6.00s\ndecode_first_stage completed, taking 2.50s\n")
    monkeypatch.setattr(peers, "watched", done)
    for _ in write_model(Z_IMAGE, tmp_path):
        pass
    peers.by_sd_cpp("sd-cli", replace(JOB, model="z-image", folder=tmp_path))
    given = dict(itertools.pairwise(done.command))
    assert "-m" not in given
    assert {name: Path(given[name]).parent.name for name in ("--diffusion-model", "--llm", "--vae")} == {
        "--diffusion-model": "transformer",
        "--llm": "text_encoder",
        "--vae": "vae",
    }
    assert all(Path(given[name]).is_file() for name in ("--diffusion-model", "--llm", "--vae"))


def test_a_peer_that_cannot_read_the_model_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(JOB, model="klein")
    assert peers.measured(job, [], ["stable-diffusion.cpp"], rounds=1) == {}
    assert "stable-diffusion.cpp is left out" in capsys.readouterr().out


def test_a_command_is_watched_to_its_end(tmp_path: Path) -> None:
    program = "import sys, time; kept = bytearray(64 * 2**20); time.sleep(0.5); print('told'); sys.exit('and why')"
    done = watched([sys.executable, "-c", program], tmp_path)
    assert (done.code, done.out, done.trouble) == (1, "told\n", "and why")
    assert done.seconds >= 0.5
    assert 64 * 2**20 < done.footprint_bytes <= done.rss_bytes


@pytest.mark.parametrize("config", [KLEIN, Z_IMAGE], ids=["klein", "z-image"])
def test_diffusers_draws_without_a_text_encoder(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in write_model(config, tmp_path):
        pass
    picture = tmp_path / "a.png"
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "3", "96", "64", "fp32", "--save", str(picture)])
    by_diffusers.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(told["steps"]) == 2 and min(*told["steps"], told["decode"]) > 0
    with Image.open(picture) as drawn:
        assert drawn.size == (96, 64)


@pytest.mark.full
@pytest.mark.parametrize("config", [KLEIN, {**Z_IMAGE, "dtype": "BF16"}], ids=["klein", "z-image"])
def test_openvino_s_transformer_gives_what_diffusers_gives(config: dict[str, Any], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    for _ in write_model(config, tmp_path):
        pass
    module, file = "benchmarks.theirs.by_openvino", tmp_path / "denoiser.xml"
    command = [sys.executable, "-m", module, "convert", str(tmp_path), str(file), "112", "80"]
    done = watched(command, tmp_path)
    assert done.code == 0, done.errors
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    assert file.with_suffix(".bin").stat().st_size < 1.1 * weights.stat().st_size
    draw = np.random.default_rng(0).standard_normal
    latents, _, context = (draw(shape, "f4") for shape in by_openvino.input_shapes(tmp_path, 112, 80, 2))
    time = np.array([0.7], "f4")
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    made = openvino.Core().compile_model(file, "CPU", hints)([latents, time, context])[0]
    given = [torch.from_numpy(one) for one in (latents, time, context)]
    np.testing.assert_allclose(made, by_diffusers_itself(tmp_path, *given).numpy(), atol=1e-5)
    assert len(by_openvino.seconds(file, by_openvino.input_shapes(tmp_path, 112, 80, 2), 2, "fp32")) == 2


def by_diffusers_itself(folder: Path, latents: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """What diffusers' transformer of a folder makes of a picture of 112x80, in FP32."""
    kind = by_openvino.config_of(folder)["_class_name"]
    transformer = getattr(diffusers, kind).from_pretrained(folder, subfolder="transformer", dtype=torch.float32).eval()
    with torch.no_grad():
        if kind == "ZImageTransformer2DModel":
            made = transformer([latents], time, [context], return_dict=False)[0][0]
        else:
            klein = diffusers.Flux2KleinPipeline
            places = (klein._prepare_latent_ids(torch.empty(1, 1, 5, 7)), klein._prepare_text_ids(context))
            made = transformer(latents, context, time, *places, return_dict=False)[0]
    assert isinstance(made, torch.Tensor)
    return made
