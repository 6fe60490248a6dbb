"""FLUX.2 [klein] as ComfyUI's users have it, in split files of the original names, draws the bits of its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file

from sdcli.domain import Sources
from sdcli.engine.schedulers import build_scheduler
from sdcli.families.contract import FlowTimes
from sdcli.families.flux2.family import BASE, DISTILLED
from sdcli.families.registry import family_of
from sdcli.models.opened import open_model
from sdcli.weights.source import Source
from tests.families.flux2.klein import KLEIN
from tests.families.flux2.test_pictures import REQUEST
from tests.split_files import VAE, comfy_tree, made, original_flux2_vae, original_klein, settings_of
from tests.support import STREAMED, draw

NAME = "flux-2-klein-4b.safetensors"
PUBLISHED = {**KLEIN, "vae": {**KLEIN["vae"], **VAE}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(PUBLISHED, tmp_path_factory.mktemp("models") / "klein")


@pytest.fixture(scope="module")
def single(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The denoiser in ComfyUI's folders."""
    home = tmp_path_factory.mktemp("ComfyUI")
    return comfy_tree(folder, home, NAME, "flux2-vae.safetensors", original_klein, original_flux2_vae)


def test_names_and_numbers_are_those_of_the_library_s_converter(single: Path) -> None:
    expected = convert_flux2_transformer_checkpoint_to_diffusers(load_file(single))
    component = open_model("m", Sources(str(single))).parts["transformer"]
    assert component.weights().keys() == expected.keys()
    with Source(component) as source:
        for name, tensor in expected.items():
            stored = source.stored(name, tuple(tensor.shape))
            assert torch.equal(stored.cast(torch.device("cpu"), tensor.dtype), tensor), name


def test_settings_are_those_of_the_folder(folder: Path, single: Path) -> None:
    ours, theirs = open_model("m", Sources(str(single))), open_model("m", folder)
    assert ours.family == theirs.family == "flux2"
    for name in ("transformer", "vae", "text_encoder"):
        assert settings_of(ours.parts[name]) == settings_of(theirs.parts[name]), name
    times = FlowTimes((1.0, 0.5), 2.0)
    schedulers = [build_scheduler(model.parts["scheduler"], 2, times) for model in (ours, theirs)]
    assert schedulers[0].config == schedulers[1].config


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.every(2)
def test_it_draws_the_bits_of_its_folder(folder: Path, single: Path, dtype: str) -> None:
    request = replace(REQUEST, steps=2, width=64)
    expected = draw(folder, request=request, dtype=dtype)
    assert expected.float().std() > 20
    assert torch.equal(draw(Sources(str(single)), request=request, dtype=dtype, plan=STREAMED), expected)


@pytest.mark.parametrize(
    ("name", "defaults", "assumed"),
    [
        ("flux-2-klein-4b-fp8", DISTILLED, False),
        ("flux-2-klein-base-4b", BASE, False),
        ("my_style_v3", DISTILLED, True),
        ("my_style_base", BASE, False),
    ],
)
def test_distilled_or_base_is_told_by_the_name(single: Path, name: str, defaults: object, assumed: bool) -> None:
    path = single.with_name(f"{name}.safetensors")
    path.write_bytes(single.read_bytes())
    model = open_model(str(path), Sources(str(path)))
    assert family_of(model).geometry(model).defaults == defaults
    assert any("distilled to 4 steps, assumed" in note for note in model.notes) == assumed
