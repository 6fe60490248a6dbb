"""Folders of models as a user meets them: what is said of them, and how a broken one ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.families.registry import by_name
from tests.cli.conftest import Command, shell

THREE_LEVELS = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to change."""
    return shutil.copytree(tiny, tmp_path / "tiny")


def edit(model: Path, part: str, **changes: Any) -> None:
    path = model / part / next(known.config_file for known in by_name("sd").parts if known.name == part)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"attention_head_dim": 0}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_num_groups": -8}),
        ("unet", {"block_out_channels": [32, 60]}),
        ("unet", {"down_block_types": ["DownBlock2D"]}),
        ("unet", {"up_block_types": ["UpBlock2D", "os.system"]}),
        ("unet", {"act_fn": "nope"}),
        ("unet", {"cross_attention_dim": 64}),
        ("unet", {"layers_per_block": [1, 1, 1]}),
        ("unet", {"sample_size": 1_000_000}),
        ("unet", {"in_channels": 7}),
        ("unet", {"out_channels": 8}),
        ("vae", {"norm_num_groups": 0}),
        ("vae", {"block_out_channels": [16] * 40}),
        ("vae", {"out_channels": 1}),
        ("text_encoder", {"num_hidden_layers": 0}),
        ("text_encoder", {"num_attention_heads": 3}),
        ("text_encoder", {"vocab_size": 1000}),
        ("text_encoder", {"max_position_embeddings": 154}),
        ("tokenizer", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
    ],
    ids=repr,
)
def test_a_config_that_describes_nothing_is_one_line_before_a_worker_starts(
    sdcli: Command, model: Path, part: str, changes: dict[str, Any]
) -> None:
    edit(model, part, **changes)
    for command in ("txt2img", "plan"):
        sdcli(command, "a", "-m", model).refused(1, "tiny")


def test_what_was_passed_over_is_said_with_v_alone(sdcli: Command, model: Path) -> None:
    edit(model, "unet", decay=0.9999, power=0.66, **{"\x1b[2J": 1}, **{f"x{index}": 1 for index in range(40)})
    edit(model, "text_encoder", num_beams=1)
    assert sdcli("plan", "a", "-m", model).err == ""
    said = sdcli("plan", "a", "-m", model, "-v").err
    assert "unet/config.json: '\\x1b[2J', 'decay', 'power', 'x0'" in said and "and 31 more not known here" in said
    assert "text_encoder/config.json: 'num_beams' not known here: passed over" in said
    assert "tokenizer" not in said and "vae/" not in said


def test_which_snapshot_and_which_variant_were_taken_is_said(sdcli: Command, model: Path, tmp_path: Path) -> None:
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bf16.safetensors"))
    snapshots = tmp_path / "models--somebody--tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    model.rename(snapshots / "abcdef0123")
    outcome = sdcli("plan", "a", "-m", snapshots.parent)
    assert outcome.code == 0 and "its only snapshot" in outcome.err and "vae: only the variant 'bf16'" in outcome.err
    assert sdcli("plan", "a", "-m", snapshots.parent, "-q").err == ""


def test_a_side_that_the_autoencoder_s_levels_do_not_divide_is_wrong_usage(sdcli: Command, model: Path) -> None:
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 5, "up_block_types": ["UpDecoderBlock2D"] * 5}
    edit(model, "vae", block_out_channels=[16] * 5, **levels)  # which its weights are not of
    sdcli("plan", "a", "-m", model, "-W", "104").refused(2, "--width 104", "multiple of 16", "give 96 or 112")
    sdcli("plan", "a", "-m", model).refused(
        1, "lacks the tensors", "and 15 more: not the model that its config describes"
    )
    Image.new("RGB", (72, 64)).save("init.png")
    sdcli("plan", "a", "-m", model, "-i", "init.png", "-W", "72").refused(2, "--width 72", "give 64 or 80")
    sdcli("plan", "a", "-m", model, "-i", "init.png").refused(1, "lacks the tensors")  # an init image fits itself


@pytest.mark.full
def test_a_three_level_autoencoder_draws_the_size_that_was_asked_for_in_the_memory_that_was_predicted(
    tmp_path: Path, work: Path
) -> None:
    from tests.folders import made

    model = made(tmp_path / "three", {"vae": THREE_LEVELS})
    size = ("-W", "128", "-H", "192")
    done = shell(work, "txt2img", "a fox", "-m", model, *size, "-s", "2", "--json", "-o", "p.png")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with Image.open(work / "p.png") as picture:
        assert picture.size == (128, 192) == (report["images"][0]["width"], report["images"][0]["height"])
    assert report["memory"]["peak_bytes"] <= report["memory"]["predicted_peak_bytes"]
