"""The text in a picture: A1111's format, our JSON, and the mark that it is generated."""

from __future__ import annotations

import dataclasses
import json
from xml.etree import ElementTree

import pytest

from sdcli.images.metadata import Provenance, parameters_text, provenance_json, xmp_packet

UNICODE_PROMPTS = [
    "\U0001f469\u200d\U0001f680 and \U0001f600",
    "cafe\u0301 na\u00efve",
    "\u05e9\u05dc\u05d5\u05dd \u202egnp.exe",
    "\u6c34\u5f69\u753b",
]


def test_txt2img_in_full(provenance: Provenance) -> None:
    assert parameters_text(provenance) == (
        "a red cat\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: EulerDiscreteScheduler, CFG scale: 7.5, Seed: 42, Size: 16x8, "
        "Model hash: 0123456789, Model: demo, RNG: CPU, Version: sdcli 0.1.0"
    )


def test_img2img_says_its_strength(provenance: Provenance) -> None:
    text = parameters_text(dataclasses.replace(provenance, strength=0.6))
    assert ", Model: demo, Denoising strength: 0.6, RNG: CPU," in text


def test_what_is_not_known_is_left_out(provenance: Provenance) -> None:
    text = parameters_text(dataclasses.replace(provenance, negative="", model_sha256=None, guidance=7.0))
    assert "Negative prompt" not in text
    assert "Model hash" not in text
    assert "Denoising" not in text
    assert "CFG scale: 7, " in text


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("models/dream, v2", '"models/dream, v2"'),
        ("synthetic:sd15", '"synthetic:sd15"'),
        ("a\nb", '"a\\nb"'),
        ('say, "hi"', '"say, \\"hi\\""'),
        ("modèle, deux", '"modèle, deux"'),
        ("org/name", "org/name"),
    ],
)
def test_values_are_quoted_as_a1111_does(provenance: Provenance, model: str, shown: str) -> None:
    text = parameters_text(dataclasses.replace(provenance, model=model))
    assert f", Model: {shown}, RNG" in text
    assert len(text.split("\n")) == 3


def test_a_prompt_of_several_lines(provenance: Provenance) -> None:
    text = parameters_text(dataclasses.replace(provenance, prompt="one\ntwo", negative="three\nfour"))
    assert text.startswith("one\ntwo\nNegative prompt: three\nfour\nSteps: 20, ")


def test_json_holds_every_field_in_order(provenance: Provenance) -> None:
    table = json.loads(provenance_json(provenance))
    assert list(table) == ["schema", *(field.name for field in dataclasses.fields(Provenance))]
    assert table.pop("schema") == "sdcli.image/1"
    assert Provenance(**table) == provenance


@pytest.mark.parametrize("prompt", UNICODE_PROMPTS)
def test_any_script_stays_as_it_is(provenance: Provenance, prompt: str) -> None:
    changed = dataclasses.replace(provenance, prompt=prompt, guidance=1 / 3, seed=2**64 - 1)
    text = provenance_json(changed)
    assert prompt in text
    assert parameters_text(changed).startswith(prompt + "\n")
    for form in (text, provenance_json(changed, ascii_only=True)):
        assert {**dataclasses.asdict(changed), "schema": "sdcli.image/1"} == json.loads(form)
    assert provenance_json(changed, ascii_only=True).isascii()


@pytest.mark.parametrize("prompt", ["a\0b", "a\ud800b"])
def test_what_no_file_can_hold_is_replaced(provenance: Provenance, prompt: str) -> None:
    changed = dataclasses.replace(provenance, prompt=prompt)
    for text in (parameters_text(changed), json.loads(provenance_json(changed))["prompt"]):
        assert "\0" not in text
        assert text.encode("utf-8").startswith(b"a")


@pytest.mark.parametrize(
    ("edited", "kind"), [(False, "trainedAlgorithmicMedia"), (True, "compositeWithTrainedAlgorithmicMedia")]
)
def test_the_mark_is_well_formed_xmp(edited: bool, kind: str) -> None:
    packet = xmp_packet(edited)
    assert packet.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>')
    description = ElementTree.fromstring(packet.encode()).find(
        ".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    assert description is not None
    assert (
        description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
        == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"
    )
