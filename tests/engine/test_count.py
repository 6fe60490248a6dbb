"""Counts of a job: what they depend on, what is refused, and how they travel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdcli.devices import open_device
from sdcli.domain import Request, Sources
from sdcli.engine.count import _Counting, count, count_all
from sdcli.engine.synthesize import write_outline
from sdcli.errors import SdcliError
from sdcli.families.registry import family_of
from sdcli.messages import Count, Counted
from sdcli.models.opened import open_model
from sdcli.plan.counts import Counts, counts_from_json, counts_to_json
from sdcli.settings import read_config
from sdcli.units import MIB
from tests.support import ASTRONAUT, counted

EDIT = replace(ASTRONAUT, strength=0.5)


def counts_of(model: Path, request: Request = ASTRONAUT, dtype: torch.dtype = torch.float32) -> Counts:
    """Counted anew."""
    return count(open_model("m", model), request, open_device("cpu"), dtype)


ALIKE: dict[str, dict[str, Any]] = {
    "a thousand pictures": {"count": 1000},
    "another seed": {"seed": 7},
    "more steps": {"steps": 50},
    "another guidance": {"guidance": 3.0},
    "other words": {"prompt": "fox", "negative": ""},
}
OTHER: dict[str, dict[str, Any]] = {
    "wider": {"width": 72},
    "higher": {"height": 128},
    "no guidance": {"guidance": 1.0},
    "more words": {"prompt": "fox " * 100},
    "an init image": {"strength": 0.5},
}


@pytest.mark.parametrize("change", ALIKE)
def test_counts_are_of_one_picture_whatever_else_is_asked(tiny: Path, change: str) -> None:
    assert counts_of(tiny, replace(ASTRONAUT, **ALIKE[change])) == counted(tiny, ASTRONAUT)


@pytest.mark.parametrize("change", OTHER)
def test_counts_depend_on_the_size_and_on_what_is_evaluated(tiny: Path, change: str) -> None:
    assert counted(tiny, replace(ASTRONAUT, **OTHER[change])) != counted(tiny, ASTRONAUT)


def test_how_strong_an_edit_is_changes_nothing(tiny: Path) -> None:
    assert counts_of(tiny, replace(EDIT, strength=1.0)) == counted(tiny, EDIT)


def test_every_stage_is_counted_in_each_of_its_ways(tiny: Path) -> None:
    counts = counted(tiny, EDIT)
    assert [*counts] == ["encode_prompt", "encode_image", "denoise", "decode"]
    assert [*counted(tiny, ASTRONAUT)] == ["encode_prompt", "denoise", "decode"]
    assert [*counts["encode_prompt"].ways] == [""]
    assert [*counts["decode"].ways] == [*counts["encode_image"].ways] == ["whole", "recomputed", "unkept"]
    together, alone = ({way.partition(",")[0] for way in of["denoise"].ways} for of in (counts, alone_of(tiny)))
    assert together == {"one sample at a time", "all samples at once"} and alone == {"one sample at a time"}
    for stage in counts.values():
        for way in stage.ways.values():
            assert way.live_bytes >= way.heap_bytes > 0 and way.flops > 0 and way.kernels > 0
        assert stage.weights


def alone_of(model: Path) -> Counts:
    return counted(model, replace(ASTRONAUT, guidance=1.0))


def test_half_precision_takes_half_the_bytes_and_as_many_operations(tiny: Path) -> None:
    full, half = counted(tiny, ASTRONAUT, "fp32"), counts_of(tiny, dtype=torch.float16)
    for name, way in full["decode"].ways.items():
        other = half["decode"].ways[name]
        assert other.flops == way.flops and other.live_bytes < way.live_bytes
    assert [use.name for use in full["denoise"].weights] == [use.name for use in half["denoise"].weights]


def test_counting_leaves_nothing_behind_and_needs_no_weights(tiny: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    for file in model.rglob("*.safetensors"):  # the headers alone are read
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        raw = file.read_bytes()
        file.write_bytes(raw[:header] + b"\xff" * (len(raw) - header))
    assert counts_of(model) == counted(tiny, ASTRONAUT)


# Files that do not match


Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def without(name: str) -> Change:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def turned(name: str) -> Change:
    return lambda tensors: {**tensors, name: tensors[name].transpose(0, 1).contiguous()}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "unet",
            without("conv_in.bias"),
            r"lacks the tensors 'conv_in\.bias': not the model that its config describes",
        ),
        ("unet", lambda t: {**t, "more": torch.zeros(3)}, "has unexpected tensors: 'more'"),
        ("unet", turned("conv_in.weight"), r"has wrong shapes for the tensors 'conv_in\.weight'"),
        ("vae", without("decoder.conv_in.bias"), r"lacks the tensors 'decoder\.conv_in\.bias'"),
        ("vae", without("encoder.conv_in.bias"), r"lacks the tensors 'encoder\.conv_in\.bias'"),
        ("text_encoder", without("final_layer_norm.weight"), r"lacks the tensors 'final_layer_norm\.weight'"),
    ],
    ids=["lacks one", "one too many", "turned", "decoder", "encoder", "words"],
)
def test_a_folder_whose_tensors_do_not_match_its_config_is_refused_when_it_is_counted(
    tiny: Path, tmp_path: Path, part: str, change: Change, message: str
) -> None:
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    (file,) = (model / part).glob("*.safetensors")
    tensors = change(load_file(file))
    file.unlink()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SdcliError, match=message) as caught:
        counts_of(model, EDIT)
    assert str(caught.value).isprintable()


# How they travel


def test_counts_come_back_equal_down_to_their_types(tiny: Path) -> None:
    counts = counted(tiny, EDIT)
    back = counts_from_json(counts_to_json(counts))
    assert back == counts and repr(back) == repr({**counts})
    assert counts_from_json(counts_to_json(counts).encode()) == counts
    for number in ("Infinity", "NaN", "-1", "1e999", "true", '"1"', "1" + "0" * 400):
        way = '{"denoise": {"weights": [], "ways": {"": [NUMBER, 1, 1.0, 1]}}}'
        weight = '{"denoise": {"weights": [["a", "b", [1, NUMBER], "matrix", [1, 1], 1]], "ways": {}}}'
        for table in (way, weight):
            with pytest.raises((ValueError, TypeError)):
                counts_from_json(table.replace("NUMBER", number))
    hash(back["denoise"].weights)


def test_a_worker_answers_each_request_in_its_order(tiny: Path) -> None:
    requests = (EDIT, ASTRONAUT, replace(ASTRONAUT, width=72))
    answers = [*count_all(Count(Sources(str(tiny)), requests, "fp32"), open_device("cpu"))]
    assert all(isinstance(answer, Counted) and answer.payload.isascii() for answer in answers)
    told = [counts_from_json(answer.payload) for answer in answers if isinstance(answer, Counted)]
    assert told == [counted(tiny, request) for request in requests]


GOOD = '{"a":{"weights":[["p","n",[2,3],"matrix",[1,2],3]],"ways":{"":[1,1,2.0,3]}}}'
GARBAGE = [
    "", "[", "[]", "1", "null", '"a"', '{"a":1}', '{"a":[]}', '{"a":{}}', '{"a":{"weights":[]}}', '{"a":{"ways":{}}}',
    GOOD.replace("[2,3]", "5"), GOOD.replace("[2,3]", '["x"]'), GOOD.replace("[1,2],3", "[1],3"),
    GOOD.replace("[1,2],3", "[1,2]"), GOOD.replace("[1,1,2.0,3]", "[1,1,2.0]"), GOOD.replace("[1,1,2.0,3]", "{}"),
    GOOD.replace("2.0", "[]"), GOOD.replace("2.0", '"x"'), GOOD.replace('{"":[1,1,2.0,3]}', "[]"),
]  # fmt: skip


def test_what_is_whole_is_read() -> None:
    assert json.loads(counts_to_json(counts_from_json(GOOD))) == json.loads(GOOD)


@pytest.mark.parametrize("text", [*GARBAGE, b"\xff\xfe", b"\x00", GOOD[:-1], "[" * 100], ids=repr)
def test_garbage_raises_what_is_documented_and_nothing_else(text: str | bytes) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
        counts_from_json(text)


@pytest.mark.full
def test_where_the_largest_maps_are_never_kept_a_large_picture_is_decoded_in_much_less(tmp_path: Path) -> None:
    """The whole process has 180 to 210 MiB before anything is loaded."""
    write_outline(read_config("models", "klein"), tmp_path)
    model = open_model("m", tmp_path)
    counting = _Counting(model, replace(EDIT, width=1024, height=1024), open_device("cpu"), torch.float32)
    ways = counting.stage(family_of(model).stages(model, EDIT)[-1]).ways
    assert ways["recomputed"].live_bytes > 290 * MIB and ways["unkept"].live_bytes < 250 * MIB
    assert ways["unkept"].flops < 2 * ways["recomputed"].flops
