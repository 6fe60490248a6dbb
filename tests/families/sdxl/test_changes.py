"""LoRA and textual inversion for SDXL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdcli.domain import Sources
from sdcli.errors import SdcliError
from sdcli.models.opened import open_model
from tests.engine.test_lora import draw_with
from tests.families.sdxl.test_pictures import PLANS, REQUEST
from tests.families.sdxl.tiny import XL
from tests.folders import made
from tests.loras import merged, write_lora
from tests.support import draw, largest_difference

SHORT = replace(REQUEST, steps=2)


@pytest.mark.every(4)
@pytest.mark.parametrize("naming", ["kohya_te1", "ldm", "peft", "diffusers"])
def test_every_naming_is_understood_for_both_encoders(xl: Path, tmp_path: Path, naming: str) -> None:
    change = write_lora(xl, tmp_path / "x.safetensors", naming=naming)
    parts = {part for part, _ in change}
    assert parts == ({"unet"} if naming == "ldm" else {"unet", "text_encoder", "text_encoder_2"})
    assert naming == "ldm" or ("text_encoder_2", "text_projection.weight") in change
    expected = draw(merged(xl, tmp_path / "m", [(change, 1.0)]), request=SHORT)
    assert largest_difference(draw(xl, request=SHORT), expected) > 8
    assert largest_difference(draw_with(xl, (tmp_path / "x.safetensors", 1.0), request=SHORT), expected) <= 1


@pytest.mark.full
def test_the_picture_is_the_same_under_every_ceiling(xl: Path, tmp_path: Path) -> None:
    write_lora(xl, tmp_path / "x.safetensors")
    lora = tmp_path / "x.safetensors", 0.7
    plans = (PLANS["after each piece, one by one"], PLANS["some of it, decoded in less"])
    whole = draw_with(xl, lora, request=SHORT)
    assert all(torch.equal(draw_with(xl, lora, request=SHORT, plan=plan), whole) for plan in plans)


def test_a_lora_for_a_shallower_or_deeper_kind_changes_what_is_there(xl: Path, tmp_path: Path) -> None:
    deep = made(tmp_path / "deep", {"unet": {"transformer_layers_per_block": [1, 2, 4]}}, XL)
    write_lora(deep, tmp_path / "x.safetensors")
    model = open_model("m", Sources(str(xl), loras=((str(tmp_path / "x.safetensors"), 1.0),)))
    assert any("modules are in this model" in note for note in model.notes)


def inversion(path: Path, first: int = 2, second: int = 2) -> Path:
    """A word with so many vectors for each encoder."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"clip_l": (first, 32), "clip_g": (second, 48)}
    save_file({name: torch.randn(size, generator=generator) for name, size in sizes.items()}, path)
    return path


@pytest.mark.full
def test_a_word_of_two_vectors_has_a_say_in_both_encoders(xl: Path, tmp_path: Path) -> None:
    request = replace(SHORT, prompt="a foxy in the snow")
    model = Sources(str(xl), embeddings=(str(inversion(tmp_path / "foxy.safetensors")),))
    ours = draw(model, request=request)
    assert largest_difference(ours, draw(xl, request=request)) > 1
    words = open_model("m", model).parts
    assert [len(words[part].words) for part in ("text_encoder", "text_encoder_2")] == [1, 1]
    assert torch.equal(draw(model, request=request, plan=PLANS["after each piece, one by one"]), ours)


def test_files_that_bring_no_word(xl: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.zeros(2, 32)}, tmp_path / "one.safetensors")
    for path, said in (
        (tmp_path / "one.safetensors", "is no embedding for Stable Diffusion XL"),
        (inversion(tmp_path / "uneven.safetensors", second=3), "more vectors for one text encoder"),
    ):
        with pytest.raises(SdcliError, match=said):
            open_model("m", Sources(str(xl), embeddings=(str(path),)))
