"""Files of LoRA: every way that people's files are written is read, and what is none or does not fit is refused."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli.domain import Adapter, Model
from sdcli.errors import SdcliError
from sdcli.families.sd.ldm_names import diffusers_name, original_blocks, original_name
from sdcli.families.sd.schema import UNet
from sdcli.models.header import data_sha256, read_header
from sdcli.models.lora import with_loras
from sdcli.models.lora_keys import Key, parse_key, refused_kind
from sdcli.models.opened import open_model
from sdcli.models.stamps import require_unchanged, stamps_of

Refused = Callable[..., AbstractContextManager[None]]
Shapes = Mapping[str, tuple[str, list[int]]]
WriteWeights = Callable[[Path, Shapes], Path]

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
"""A matrix of 32 x 32."""

CONVOLUTION = "mid_block.resnets.0.conv1"
"""64 x 64 x 3 x 3."""

WORDS = "encoder.layers.1.mlp.fc1"
"""64 x 32."""

KOHYA = f"lora_unet_{QUERY.replace('.', '_')}"


@pytest.fixture
def model(tiny: Path) -> Model:
    return open_model("m", tiny)


@pytest.fixture
def apply(model: Model, tmp_path: Path, write_weights: WriteWeights) -> Callable[..., Model]:
    """The model with a file of these tensors, F16 where nothing else is said."""

    def change(tensors: Mapping[str, object], weight: float = 1.0) -> Model:
        full = {name: told if isinstance(told, tuple) else ("F16", told) for name, told in tensors.items()}
        return with_loras(model, [(str(write_weights(tmp_path / "x.safetensors", full)), weight)])  # type: ignore[arg-type]

    return change


def pair(key: str = KOHYA, out: int = 32, into: int = 32, rank: int = 4) -> dict[str, list[int]]:
    return {f"{key}.lora_down.weight": [rank, into], f"{key}.lora_up.weight": [out, rank]}


def adapter(model: Model, name: str = QUERY, part: str = "unet") -> Adapter:
    (one,) = model.parts[part].adapters[f"{name}.weight"]
    return one


@pytest.mark.parametrize(
    ("down", "up", "name", "part"),
    [
        (f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight", QUERY, "unet"),
        (f"{KOHYA}.lora_A.weight", f"{KOHYA}.lora_B.weight", QUERY, "unet"),
        (f"unet.{QUERY}.lora_A.weight", f"unet.{QUERY}.lora_B.weight", QUERY, "unet"),
        (f"unet.{QUERY}.lora_A.default.weight", f"unet.{QUERY}.lora_B.default.weight", QUERY, "unet"),
        (f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight", QUERY, "unet"),
        (f"base_model.model.{QUERY}.lora_A.weight", f"base_model.model.{QUERY}.lora_B.weight", QUERY, "unet"),
        (f"unet.{QUERY}.lora.down.weight", f"unet.{QUERY}.lora.up.weight", QUERY, "unet"),
        (f"unet.{QUERY}.lora_linear_layer.down.weight", f"unet.{QUERY}.lora_linear_layer.up.weight", QUERY, "unet"),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",
            QUERY,
            "unet",
        ),
        (
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
            QUERY,
            "unet",
        ),
        (
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_B.weight",
            QUERY,
            "unet",
        ),
        (
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
            "encoder.layers.0.self_attn.q_proj",
            "text_encoder",
        ),
        (
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
            "encoder.layers.0.self_attn.q_proj",
            "text_encoder",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.down.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj.lora_linear_layer.up.weight",
            "encoder.layers.0.self_attn.out_proj",
            "text_encoder",
        ),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
            "encoder.layers.0.self_attn.out_proj",
            "text_encoder",
        ),
        (
            "text_encoder.encoder.layers.0.self_attn.out_proj.lora_A.weight",
            "text_encoder.encoder.layers.0.self_attn.out_proj.lora_B.weight",
            "encoder.layers.0.self_attn.out_proj",
            "text_encoder",
        ),
    ],
)
def test_names_of_every_program_are_understood(
    apply: Callable[..., Model], down: str, up: str, name: str, part: str
) -> None:
    changed = apply({down: [4, 32], up: [32, 4]})
    one = adapter(changed, name, part)
    assert (one.kind, one.scale, one.weight) == ("lora", 1.0, 1.0)
    assert {role: origin.stored for role, origin in one.tensors.items()} == {"down": down, "up": up}
    assert changed.notes == ()
    others = {component.name for component in changed.parts.values() if component.adapters}
    assert others == {part} == {component.name for component in changed.parts.values() if component.adapter_files}


def test_original_names_are_those_of_the_published_model() -> None:
    blocks = original_blocks(UNet())
    known = {
        "input_blocks.0.0": "conv_in",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
        "input_blocks.3.0.op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks.4.0.skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "input_blocks.4.1.proj_in": "down_blocks.1.attentions.0.proj_in",
        "output_blocks.4.1.transformer_blocks.0.attn1.to_q": "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.11.0.emb_layers.1": "down_blocks.3.resnets.1.time_emb_proj",
        "middle_block.1.proj_in": "mid_block.attentions.0.proj_in",
        "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
        "output_blocks.2.1.conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks.5.2.conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks.11.1.proj_out": "up_blocks.3.attentions.2.proj_out",
        "out.2": "conv_out",
    }
    assert {theirs: diffusers_name(blocks, theirs) for theirs in known} == known
    turned = {ours: theirs for theirs, ours in blocks.items()}
    assert {original_name(turned, ours): ours for ours in known.values()} == known
    assert diffusers_name(blocks, "input_blocks.12.0.op") is None
    assert original_name(turned, "down_blocks.4.resnets.0.conv1") is None
    assert len(set(blocks.values())) == len(blocks) == 3 * 4 - 1 + 3 + 4 * 3 + 3 + 6 + 9


@pytest.mark.parametrize(
    ("dtype", "raw"),
    [
        ("F32", struct.pack("<f", 2.0)),
        ("F16", struct.pack("<e", 2.0)),
        ("BF16", b"\x00\x40"),
        ("F64", struct.pack("<d", 2.0)),
        ("I64", struct.pack("<q", 2)),
    ],
)
def test_alpha_is_read_and_divided_by_the_rank(
    apply: Callable[..., Model], tmp_path: Path, model: Model, dtype: str, raw: bytes
) -> None:
    apply({**pair(), f"{KOHYA}.alpha": (dtype, [])})
    path = tmp_path / "x.safetensors"
    begin = read_header(path).tensors[f"{KOHYA}.alpha"].begin
    content = bytearray(path.read_bytes())
    at = 8 + int.from_bytes(content[:8], "little") + begin
    content[at : at + len(raw)] = raw
    path.write_bytes(content)
    assert adapter(with_loras(model, [(str(path), 0.7)])).scale == 0.5
    assert adapter(with_loras(model, [(str(path), 0.7)])).weight == 0.7


def test_without_alpha_the_scale_is_1_and_alpha_has_no_say_over_a_whole_kronecker_product(
    apply: Callable[..., Model],
) -> None:
    assert adapter(apply(pair())).scale == 1
    whole = {f"{KOHYA}.lokr_w1": [4, 4], f"{KOHYA}.lokr_w2": [8, 8], f"{KOHYA}.alpha": ("F32", [])}
    assert adapter(apply(whole)).scale == 1


@pytest.mark.parametrize(
    ("table", "scale"),
    [
        ({"unet.lora_alpha": 8, "unet.r": 4}, 2.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2, "attn1.to_k": 16}}, 0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
        ({"unet.lora_alpha": True}, 1.0),
        ({"unet.lora_alpha": "8"}, 1.0),
        ({}, 1.0),
        ([], 1.0),
    ],
)
def test_alpha_may_be_a_note_of_diffusers_or_lie_beside_a_file_of_peft(
    model: Model, tmp_path: Path, write_raw: Callable[[Path, bytes, int], Path], table: object, scale: float
) -> None:
    entries = {
        f"base_model.model.{QUERY}.lora_A.weight": {"dtype": "F16", "shape": [4, 32], "data_offsets": [0, 256]},
        f"base_model.model.{QUERY}.lora_B.weight": {"dtype": "F16", "shape": [32, 4], "data_offsets": [256, 512]},
    }
    noted = {"__metadata__": {"lora_adapter_metadata": json.dumps(table)}, **entries}
    file = write_raw(tmp_path / "x.safetensors", json.dumps(noted).encode(), 512)
    assert adapter(with_loras(model, [(str(file), 1.0)])).scale == scale
    if isinstance(table, dict):
        own = {key.removeprefix("unet."): value for key, value in table.items()}
        (tmp_path / "adapter_config.json").write_text(json.dumps(own))
        file = write_raw(tmp_path / "adapter_model.safetensors", json.dumps(entries).encode(), 512)
        assert adapter(with_loras(model, [(str(file), 1.0)])).scale == scale


def test_a_damaged_note_or_config_says_nothing(
    model: Model, tmp_path: Path, write_raw: Callable[[Path, bytes, int], Path]
) -> None:
    entries = {
        f"unet.{QUERY}.lora_A.weight": {"dtype": "F16", "shape": [4, 32], "data_offsets": [0, 256]},
        f"unet.{QUERY}.lora_B.weight": {"dtype": "F16", "shape": [32, 4], "data_offsets": [256, 512]},
    }
    noted = {"__metadata__": {"lora_adapter_metadata": "[" * 50_000}, **entries}
    (tmp_path / "adapter_config.json").write_text("{")
    file = write_raw(tmp_path / "adapter_model.safetensors", json.dumps(noted).encode(), 512)
    assert adapter(with_loras(model, [(str(file), 1.0)])).scale == 1


def test_a_weight_of_0_changes_nothing(apply: Callable[..., Model], model: Model) -> None:
    same = apply(pair(), 0.0)
    assert same.loras == () and same.digest == model.digest
    assert not any(part.adapters or part.adapter_files for part in same.parts.values())


def test_two_files_add_up_and_so_does_one_twice(apply: Callable[..., Model], tmp_path: Path) -> None:
    once = apply(pair())
    twice = with_loras(once, [(str(tmp_path / "x.safetensors"), 0.5)])
    assert [one.weight for one in twice.parts["unet"].adapters[f"{QUERY}.weight"]] == [1.0, 0.5]
    assert len(once.parts["unet"].adapters[f"{QUERY}.weight"]) == 1
    assert twice.digest != once.digest


def test_the_digest_tells_models_with_loras_apart_and_files_stay_those_of_the_model(
    apply: Callable[..., Model], model: Model
) -> None:
    changed = apply(pair())
    assert changed.digest not in (model.digest, apply(pair(rank=8)).digest)
    assert changed.digest == apply(pair(), 0.3).digest
    assert changed.parts["unet"].files == model.parts["unet"].files


def test_a_file_that_is_changed_while_it_is_in_use_is_told(apply: Callable[..., Model], tmp_path: Path) -> None:
    changed = apply(pair())
    opened = stamps_of(changed)
    require_unchanged(opened, changed.parts["unet"])
    os.utime(tmp_path / "x.safetensors", (1, 1))
    with pytest.raises(SdcliError, match=r"unet/lora 1/x\.safetensors"):
        require_unchanged(opened, changed.parts["unet"])


def test_of_a_partial_match_it_is_said_how_many_and_what_is_not_there(apply: Callable[..., Model]) -> None:
    changed = apply({**pair(), **pair("lora_unet_nowhere"), "lora_te_other.alpha": ("F32", [])})
    (note,) = changed.notes
    assert note == "'x.safetensors': 1 of its 3 modules are in this model; 'lora_unet_nowhere', for one, is not"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (pair("lora_unet_nowhere_at_all"), ("another model than sd", "1 modules", "nowhere_at_all")),
        ({"model.weight": [4, 4]}, ("is no LoRA", "1 tensors")),
        ({}, ("is no LoRA",)),
        ({"conv_in.weight": [320, 4, 3, 3], "add_embedding.linear_1.weight": [4, 4]}, ("Stable Diffusion XL",)),
        ({f"{KOHYA}.diff": [32, 32]}, ("a whole difference (diff)", "not supported")),
        ({f"{KOHYA}.diff_b": [32]}, ("a difference of a bias",)),
        ({f"{KOHYA}.oft_blocks": [4, 8, 8]}, ("OFT",)),
        ({f"{KOHYA}.a1.weight": [4, 8]}, ("GLoRA",)),
        ({f"{KOHYA}.weight": [32], f"{KOHYA}.on_input": []}, ("IA3",)),
        ({f"{KOHYA}.lora_down.weight": [4, 32]}, ("lacks its up",)),
        ({f"{KOHYA}.alpha": ("F32", [])}, ("without its matrices",)),
        ({**pair(), f"{KOHYA}.alpha": ("F32", [2])}, ("no single number",)),
        ({**pair(), f"{KOHYA}.hada_w1_a": [4, 4]}, ("of two kinds",)),
        ({**pair(), **pair(f"unet.{QUERY}")}, ("changes", "twice")),
        ({**pair(), f"{KOHYA}.lora_A.weight": [4, 32]}, ("is there twice",)),
        ({**pair(), f"{KOHYA}.lora_up.weight": [32, 8]}, ("do not go together", "(32, 8)", "(4, 32)")),
        (pair(into=320), ("(32, 320)", "(32, 32)", "give a LoRA for this model")),
        (pair(rank=0), ("rank of 0",)),
        ({f"{KOHYA}.lora_down.weight": [4], f"{KOHYA}.lora_up.weight": [32, 4]}, ("do not go together", "(4,)")),
        ({**pair(), f"{KOHYA}.dora_scale": [31, 1]}, ("magnitudes (31, 1)",)),
        ({**pair(), f"{KOHYA}.dora_scale": [1, 31]}, ("magnitudes (1, 31)",)),
        ({f"{KOHYA}.lokr_w1": [4, 4], f"{KOHYA}.lokr_w2": [8, 9]}, ("(32, 36)",)),
        ({f"{KOHYA}.lokr_w1": [4, 4]}, ("lacks its w2_a",)),
        ({f"{KOHYA}.hada_w1_a": [32, 4], f"{KOHYA}.hada_w1_b": [4, 32]}, ("lacks its w2_a",)),
        ({k: ("F64", v) for k, v in pair().items()}, ("is F64", "F16, BF16, F32 or F8")),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), ("for Stable Diffusion XL",)),
        (
            pair("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q") | pair(),
            ("for Stable Diffusion XL", "the model is sd"),
        ),
        (pair("lora_unet_double_blocks_0_img_attn_qkv"), ("for Flux",)),
        (pair("transformer.single_transformer_blocks.0.attn.to_q"), ("for Flux",)),
        (pair("lora_unet_joint_blocks_0_x_block_attn_qkv"), ("Stable Diffusion 3",)),
        (pair("diffusion_model.blocks.0.self_attn.q"), ("diffusion transformer",)),
        (
            pair(KOHYA.replace("attn1_to_q", "attn2_to_k"), into=1024),
            ("(32, 1024)", "it is for Stable Diffusion 2.x"),
        ),
    ],
)
def test_what_is_none_or_does_not_fit_is_refused(
    apply: Callable[..., Model], refused: Refused, tensors: Mapping[str, object], words: tuple[str, ...]
) -> None:
    with refused(1, *words):
        apply(tensors)


def test_what_is_no_safetensors_file_is_refused(model: Model, tmp_path: Path, refused: Refused) -> None:
    for name, content, word in (
        ("a.pt", pickle.dumps({"a": 1}), "pickle"),
        ("b.safetensors", b"<!DOCTYPE html><html>", "HTML"),
        ("c.safetensors", b"", "empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with refused(1, word):
            with_loras(model, [(str(tmp_path / name), 1.0)])
    with refused(1, "cannot read"):
        with_loras(model, [(str(tmp_path / "nowhere.safetensors"), 1.0)])


def test_magnitudes_of_both_kinds_on_one_weight_are_refused(
    apply: Callable[..., Model], tmp_path: Path, write_weights: WriteWeights, refused: Refused
) -> None:
    first = apply({**pair(), f"{KOHYA}.dora_scale": [32, 1]})
    second = {name: ("F16", shape) for name, shape in {**pair(), f"{KOHYA}.dora_scale": [1, 32]}.items()}
    assert "magnitude" in adapter(first).tensors
    with refused(1, "magnitudes", "of another kind"):
        with_loras(first, [(str(write_weights(tmp_path / "y.safetensors", second)), 1.0)])


def test_the_shape_tells_whose_magnitudes_they_are_unless_the_name_does(apply: Callable[..., Model]) -> None:
    key = "lora_te_text_model_encoder_layers_1_mlp_fc1"
    for ending, shape, role in (
        ("dora_scale", [64, 1], "magnitude"),
        ("dora_scale", [64], "magnitude"),
        ("dora_scale", [1, 32], "input_magnitude"),
        ("lora_magnitude_vector", [1, 64], "magnitude"),
        ("lora_magnitude_vector.weight", [64], "magnitude"),
    ):
        changed = apply({**pair(key, 64, 32), f"{key}.{ending}": shape})
        assert set(adapter(changed, WORDS, "text_encoder").tensors) == {"down", "up", role}


def test_a_pointwise_convolution_is_a_matrix_and_the_other_way_round(apply: Callable[..., Model]) -> None:
    key = "lora_unet_down_blocks_0_attentions_0_proj_in"
    for down in ([4, 32], [4, 32, 1, 1]):
        apply({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": [32, 4, 1, 1]})
    apply({f"{KOHYA}.lora_down.weight": [4, 32, 1, 1], f"{KOHYA}.lora_up.weight": [32, 4, 1, 1]})


def test_keys_are_taken_apart_and_kinds_are_known_by_name() -> None:
    assert parse_key("a.b.lora_mid.weight") == Key("a.b", "mid", "lora")
    assert parse_key("a.hada_t2") == Key("a", "t2", "loha")
    assert parse_key("a.lokr_w2_b") == Key("a", "w2_b", "lokr")
    assert parse_key("a.weight") is None and parse_key(".alpha") is None
    assert refused_kind("a.set_weight") and refused_kind("a.weight") is None


def test_the_digest_of_its_tensors_is_without_the_header(tmp_path: Path, write_weights: WriteWeights) -> None:
    import hashlib

    path = write_weights(tmp_path / "x.safetensors", {"a": ("F16", [3])})
    assert data_sha256(read_header(path)) == hashlib.sha256(bytes(6)).hexdigest()


def test_whatever_names_and_shapes_a_file_has_it_is_read_or_refused_in_a_line(
    apply: Callable[..., Model], model: Model
) -> None:
    """Fuzz: pieces of names put together at random, with shapes at random."""
    dice = random.Random(5)
    modules = [KOHYA, f"unet.{QUERY}", "lora_unet_conv_in", f"lora_unet_{CONVOLUTION.replace('.', '_')}", "x", ""]
    endings = [
        *("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "lora_A", "lora_B.default"),
        *(f"hada_{role}" for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        *(f"lokr_{role}" for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
        *("diff", "lora_magnitude_vector", "\x00", "…"),
    ]
    read = 0
    for _ in range(800):
        tensors = dict(pair(rank=dice.choice([1, 4, 8]))) if dice.random() < 0.2 else {}
        kind = dice.choice(["lora", "hada", "lokr", ""])
        some = [ending for ending in endings if ending.startswith(kind)]
        for _ in range(dice.randint(0, 1) if tensors else dice.randint(1, 7)):
            shape = [dice.choice([0, 1, 2, 4, 8, 32, 64]) for _ in range(dice.randint(0, 4))]
            tensors[f"{dice.choice(modules[: dice.randint(1, 6)])}.{dice.choice(some)}"] = shape
        try:
            changed = apply(tensors)
        except SdcliError as error:
            assert str(error).isprintable() and len(str(error)) < 500
        else:
            read += 1
            assert json.dumps([len(part.adapters) for part in changed.parts.values()])
    assert read > 0
