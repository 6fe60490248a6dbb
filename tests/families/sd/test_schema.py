"""Schemas say what the libraries' classes do: the same keys, and the same values where a config has none."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig

from sdcli.families.contract import Part, Settings
from sdcli.families.sd.parts import PARTS, TEXT_ENCODER, UNET, VAE


def taken(kind: type) -> dict[str, Any]:
    """The keys that a class takes, with its own defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name != "self"}


@pytest.mark.parametrize(("part", "kind"), [(UNET, UNet2DConditionModel), (VAE, AutoencoderKL)], ids=["unet", "vae"])
def test_the_defaults_of_a_network_are_its_class_s(part: Part, kind: type) -> None:
    theirs = taken(kind)
    ours = {field.name: field.default for field in fields(part.schema)}
    assert ours == {key: theirs[key] for key in ours}
    assert {*ours, *part.unset} | part.idle >= theirs.keys()
    for key in theirs.keys() & part.unset:
        assert not theirs[key] or theirs[key] == part.unset[key], key


def test_the_defaults_of_the_text_encoder_are_its_config_s() -> None:
    theirs = CLIPTextConfig()
    assert {field.name: field.default for field in fields(TEXT_ENCODER.schema)} == {
        field.name: getattr(theirs, field.name) for field in fields(TEXT_ENCODER.schema)
    }


@pytest.mark.parametrize("part", [UNET, VAE, TEXT_ENCODER], ids=lambda part: part.name)
def test_every_setting_of_a_network_has_a_rule_that_its_default_obeys(part: Part) -> None:
    for field in fields(part.schema):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        is_unset = part is UNET and field.name == "sample_size"
        assert field.metadata["rule"](default) or is_unset, field.name


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_config_that_says_nothing_is_one(part: Part) -> None:
    assert isinstance(part.schema(), Settings) and [*part.schema().faults(())] == []
