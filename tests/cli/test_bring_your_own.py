"""Files that people have, through the command line: one file as the model, parts from elsewhere, what is told."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.cli.conftest import shell
from tests.conftest import SDCLI
from tests.folders import made, with_clip
from tests.originals import FIRST, PREFIXES, SECOND, originals, write_single

JOB = ("a fox", "-s", "2", "--seed", "5", "--size", "64x64", "--mem-limit", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_clip(made(tmp_path_factory.mktemp("models") / "first", FIRST))


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the folder draws, and by the first test the file as well."""
    work = tmp_path_factory.mktemp("own")
    done = shell(work, "txt2img", *JOB, "-m", folder, "-o", "own.png")
    assert done.returncode == 0, done.stderr
    return pixels(work / "own.png")


@pytest.fixture
def single(folder: Path, tmp_path: Path) -> Path:
    return write_single(folder, tmp_path / "my model.safetensors")


def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*SDCLI, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def without(path: Path, *parts: str) -> Path:
    """The file without some of its networks."""
    homes = tuple(PREFIXES[part] for part in parts)
    pruned = path.with_name("pruned.safetensors")
    save_file({name: one for name, one in load_file(path).items() if not name.startswith(homes)}, pruned)
    return pruned


@pytest.mark.full
def test_one_file_draws_what_its_folder_draws_and_says_what_was_assumed(
    single: Path, own: bytes, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.png"
    said = run("txt2img", *JOB, "-m", single, "-o", ours).stderr
    assert "epsilon-prediction assumed, as nearly all of Stable Diffusion 1.x" in said and "--prediction v" in said
    assert pixels(ours) == own


@pytest.mark.full
def test_what_a_pruned_file_lacks_is_named_with_the_options_that_give_it(
    single: Path, own: bytes, tmp_path: Path
) -> None:
    pruned = without(single, "vae", "text_encoder")
    said = run("txt2img", *JOB, "-m", pruned, code=1).stderr
    assert "has unet" in said and "lacks text_encoder and vae: give --text-encoder and --vae" in said
    run("txt2img", *JOB, "-m", pruned, "--vae", single, "--text-encoder", single, "-o", tmp_path / "a.png")
    assert pixels(tmp_path / "a.png") == own


@pytest.mark.full
def test_an_autoencoder_from_a_file_of_its_own_a_folder_or_a_model(
    single: Path, folder: Path, own: bytes, tmp_path: Path
) -> None:
    changed = {name: tensor * 1.1 for name, tensor in originals(folder)["vae"].items()}
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, tmp_path / "other.safetensors")
    whole = Path(shutil.copytree(folder, tmp_path / "whole"))
    weights = next((whole / "vae").glob("*.safetensors"))
    save_file({name: tensor * 1.1 for name, tensor in load_file(weights).items()}, weights)
    drawn = []
    for index, vae in enumerate([tmp_path / "other.safetensors", whole / "vae", whole]):
        run("txt2img", *JOB, "-m", single, "--vae", vae, "-o", tmp_path / f"{index}.png")
        drawn.append(pixels(tmp_path / f"{index}.png"))
    assert len({*drawn}) == 1 and drawn[0] != own
    with Image.open(tmp_path / "2.png") as picture:
        assert json.loads(picture.info["sdcli"])["parts"] == {"vae": str(whole.resolve())}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora_unet_down_blocks_0.lora_up.weight": [2, 2]}, "looks like a LoRA"),
        ({"control_model.input_blocks.0.0.weight": [2, 2]}, "looks like a ControlNet"),
        ({"double_blocks.0.img_attn.qkv.weight": [2, 2]}, "looks like Flux"),
        ({"emb_params": [2, 768]}, "looks like a textual inversion"),
        ({"some.weight": [2]}, "has no network that is known here"),
    ],
)
def test_a_file_that_is_none_of_these_is_named(given: dict[str, list[int]], said: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(shape) for name, shape in given.items()}, tmp_path / "m.safetensors")
    error = run("txt2img", *JOB, "-m", tmp_path / "m.safetensors", code=1).stderr
    assert said in error and "give a checkpoint of Stable Diffusion 1.x, 2.x or XL" in error


@pytest.mark.full
def test_words_may_be_taken_from_an_earlier_layer(folder: Path, own: bytes, tmp_path: Path) -> None:
    for skip in ("1", "2"):
        run("txt2img", *JOB, "-m", folder, "--clip-skip", skip, "-o", tmp_path / f"{skip}.png")
    assert pixels(tmp_path / "1.png") == own != pixels(tmp_path / "2.png")
    with Image.open(tmp_path / "2.png") as picture:
        assert "Clip skip: 2" in picture.info["parameters"]
    assert "leaves no layer" in run("txt2img", *JOB, "-m", folder, "--clip-skip", "3", code=2).stderr


@pytest.mark.full
def test_the_second_kind_has_left_out_a_layer_already(tmp_path: Path) -> None:
    folder = with_clip(made(tmp_path / "second", SECOND))
    said = run("txt2img", *JOB, "-m", folder, "--clip-skip", "1", "-o", tmp_path / "1.png").stderr
    assert "--clip-skip 1 has no effect: this model's own is 2" in said


@pytest.mark.full
@pytest.mark.parametrize(
    ("keys", "metadata"), [({"v_pred": torch.zeros(1)}, None), ({}, {"modelspec.prediction_type": "v"})]
)
def test_v_prediction_is_told_by_the_file(
    folder: Path, own: bytes, tmp_path: Path, keys: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    path = write_single(folder, tmp_path / "m.safetensors", metadata, **keys)
    said = run("txt2img", *JOB, "-m", path, "-o", tmp_path / "told.png").stderr
    assert "v-prediction by" in said
    plain = write_single(folder, tmp_path / "plain.safetensors")
    run("txt2img", *JOB, "-m", plain, "--prediction", "v", "-o", tmp_path / "given.png")
    assert pixels(tmp_path / "told.png") == pixels(tmp_path / "given.png") != own


@pytest.mark.full
def test_the_picture_names_the_file_by_its_sha256_which_is_worked_out_once(single: Path, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(single.read_bytes()).hexdigest()
    for name in ("first", "again"):
        run("txt2img", *JOB, "-m", single, "-o", tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert f"Model hash: {sha256[:10]}" in picture.info["parameters"]
            table = json.loads(picture.info["sdcli"])
            assert table["model_sha256"] == sha256 and len(table["model_digest"]) == 64
    remembered = json.loads((tmp_path / "cache" / "hashes.json").read_text("utf-8"))
    assert [*remembered.values()] == [sha256]


def embedding(path: Path) -> Path:
    save_file({"emb_params": torch.randn(2, 32, generator=torch.Generator().manual_seed(1))}, path)
    return path


@pytest.mark.full
def test_words_of_a_file_or_of_a_folder_s_files_by_their_names(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "words"
    kept.mkdir()
    foxy = embedding(kept / "foxy.safetensors")
    (kept / "old.pt").write_bytes(b"\x80\x04}\x94.")
    job = ("a foxy cat", *JOB[1:], "-m", folder)
    run("txt2img", *job, "--embedding", foxy, "-o", tmp_path / "file.png")
    run("txt2img", *job, "--embedding-dir", kept, "-o", tmp_path / "folder.png")
    run("txt2img", *job, "-o", tmp_path / "none.png")
    assert pixels(tmp_path / "file.png") == pixels(tmp_path / "folder.png") != pixels(tmp_path / "none.png")
    with Image.open(tmp_path / "file.png") as picture:
        assert json.loads(picture.info["sdcli"])["embeddings"] == [str(foxy)]
        sha256 = hashlib.sha256(foxy.read_bytes()).hexdigest()
        assert f'TI hashes: "foxy: {sha256[:12]}"' in picture.info["parameters"]
    assert "is a pickle" in run("txt2img", "an old fox", *job[1:], "--embedding-dir", kept, code=1).stderr
    said = run("txt2img", "a fox", *job[1:], "--embedding", foxy, "-o", tmp_path / "idle.png").stderr
    assert "has no effect: neither prompt has its word 'foxy'" in said
