"""`synthetic:sdxl` is SDXL 1.0, and its parts say what the libraries' classes say where a config is silent."""

from __future__ import annotations

from dataclasses import fields

import pytest
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig

from sdcli.engine.synthesize import _empty_modules
from sdcli.families.contract import Part, Settings
from sdcli.families.sdxl.parts import PARTS, TEXT_ENCODER_2, UNET_XL
from sdcli.settings import read_config
from tests.families.sd.test_schema import taken

PUBLISHED = {
    "unet": 2_567_463_684,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "vae": 83_653_863,
}
"""Parameters of stabilityai/stable-diffusion-xl-base-1.0."""


def test_its_networks_have_as_many_parameters_as_the_published_ones() -> None:
    modules = _empty_modules(read_config("models", "sdxl"))
    assert {part.name: sum(p.numel() for p in module.parameters()) for part, module in modules.items()} == PUBLISHED


def test_the_defaults_of_the_networks_are_their_classes_s() -> None:
    theirs = taken(UNet2DConditionModel)
    ours = {field.name: field.default for field in fields(UNET_XL.schema)}
    assert ours == {key: theirs[key] for key in ours}
    assert {*ours, *UNET_XL.unset} | UNET_XL.idle >= theirs.keys()
    config = CLIPTextConfig()
    assert all(field.default == getattr(config, field.name) for field in fields(TEXT_ENCODER_2.schema))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_config_that_says_nothing_is_one(part: Part) -> None:
    assert isinstance(part.schema(), Settings) and [*part.schema().faults(())] == []
