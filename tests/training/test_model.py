"""The assembled folder, and the measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdcli.models.opened import open_model
from tests.support import geometry_of
from training.compose import Composer
from training.evaluate import held_out_prompts, score
from training.evaluate import main as evaluate
from training.glyphs import Glyphs
from training.measure import Judge
from training.networks import SCALING_FACTOR
from training.recipes import Planner

CPU = torch.device("cpu")


def test_the_folder_is_a_model(model: Path) -> None:
    opened = open_model("model", model)
    assert geometry_of(opened).native_size == (64, 64)
    assert opened.parts["vae"].config["scaling_factor"] == SCALING_FACTOR
    assert opened.parts["scheduler"].config["prediction_type"] == "v_prediction"
    assert {origin.info.dtype for origin in opened.parts["unet"].weights().values()} == {"F16"}
    card = (model / "MODEL_CARD.md").read_text("utf-8")
    assert "What it cannot do" in card and "seed 0" in card
    assert "Open Font License" in " ".join((model / "LICENSE.md").read_text("utf-8").split())
    assert (model / "curves.png").is_file()


def test_diffusers_loads_it(model: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a fox on a blue background", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)


@pytest.mark.parametrize("guidance", ["1", "5"])
def test_evaluation_writes_its_files(
    model: Path, sitting: Path, glyphs_file: Path, tmp_path: Path, guidance: str
) -> None:
    options = ["--prompts", "9", "--steps", "2", "--scenes", "4", "--guidance", guidance, "--device", "cpu"]
    files = ["--glyphs", str(glyphs_file), "--out", str(tmp_path), "--losses", str(sitting / "losses.csv")]
    evaluate(["--model", str(model), *options, *files])
    assert {path.name for path in tmp_path.glob("*.*")} == {"measures.json", "sheet.png", "curves.png"}
    measures = json.loads((tmp_path / "measures.json").read_text("utf-8"))
    assert measures["scores"][f"{float(guidance)}"]["all"]["prompts"] == 9 and "| top-1 |" in measures["table"]


@pytest.mark.full
def test_the_batched_artist_draws_what_the_program_draws(model: Path) -> None:
    from training.evaluate import Artist, Program

    prompts = ["a fox on a blue background", "a cat"]
    batched = Artist(model, CPU)(prompts, 5.0, 3, 7)
    program = Program(model, CPU, "fp32")(prompts, 5.0, 3, 7)
    assert (batched - program).abs().max() < 0.02


def test_true_pictures_are_all_right_and_noise_is_not(glyphs: Glyphs) -> None:
    planner = Planner(glyphs.names)
    questions = held_out_prompts(planner, 18)
    judge = Judge(glyphs, planner.palette, CPU)
    perfect = Composer(glyphs.pixels, CPU, 128)(questions.recipe) / 2 + 0.5
    for group in score(perfect, questions.recipe, judge).values():
        assert group["top1"] == group["top5"] == group["background"] == 1.0
    dim = (perfect + 0.05 * torch.randn(perfect.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert score(dim, questions.recipe, judge)["all"]["top1"] == 1.0
    noise = torch.rand(perfect.shape, generator=torch.Generator().manual_seed(0))
    assert score(noise, questions.recipe, judge)["all"]["top1"] < 0.4
    assert score(perfect.roll(1, 0), questions.recipe, judge)["all"]["top1"] < 0.5
