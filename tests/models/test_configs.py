"""Configs are other people's input: only known classes, known keys and plain values get through."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from sdcli import settings
from sdcli.errors import SdcliError
from sdcli.families.contract import Part
from sdcli.families.registry import by_name
from sdcli.models import schedulers
from sdcli.models.configs import CONFIG_LIMIT_BYTES, checked_config, class_name, keys_passed_over, read_json
from sdcli.models.opened import open_model
from sdcli.models.schedulers import SCHEDULERS
from sdcli.models.synthetic import family_of_configs
from sdcli.units import MIB

Refused = Callable[..., AbstractContextManager[None]]

PATH = Path("model/unet/config.json")

PARTS = {part.name: part for part in by_name("sd").parts}


def known_classes(part: Part) -> Collection[str]:
    return SCHEDULERS if part.is_scheduler else part.classes


def added_token(content: str) -> dict[str, Any]:
    return {
        "__type": "AddedToken",
        "content": content,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


PUBLISHED: dict[str, dict[str, Any]] = {
    "unet": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    },
    "scheduler": {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    },
    "tokenizer": {
        "add_prefix_space": False,
        "bos_token": added_token("<|startoftext|>"),
        "do_lower_case": True,
        "eos_token": added_token("<|endoftext|>"),
        "errors": "replace",
        "model_max_length": 77,
        "name_or_path": "openai/clip-vit-large-patch14",
        "pad_token": "<|endoftext|>",
        "special_tokens_map_file": "./special_tokens_map.json",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": added_token("<|endoftext|>"),
    },
}
"""The configs of runwayml/stable-diffusion-v1-5."""

RESAVED_UNET = {
    **PUBLISHED["unet"],
    "_diffusers_version": "0.42.1",
    "_name_or_path": "/home/someone/models/unet",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": None,
    "attention_head_dim": [5, 10, 20, 20],
    "attention_type": "default",
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": [False, False, False, True],
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "use_linear_projection": True,
}
"""What a current diffusers writes when it saves a UNet of Stable Diffusion 2.x."""

RESAVED_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.42.1",
    "beta_schedule": "scaled_linear",
    "disable_corrector": [],
    "final_sigmas_type": "zero",
    "flow_shift": 1.0,
    "predict_x0": True,
    "rescale_betas_zero_snr": False,
    "shift_terminal": None,
    "sigma_max": None,
    "solver_p": None,
    "time_shift_type": "exponential",
    "trained_betas": [0.001] * 1000,
    "use_dynamic_shifting": False,
    "use_flow_sigmas": False,
}


@pytest.mark.parametrize("component", PARTS)
def test_the_configs_of_the_published_model_are_let_through(component: str, tmp_path: Path) -> None:
    path = tmp_path / PARTS[component].config_file
    path.write_text(json.dumps(PUBLISHED[component], indent=2), "utf-8")
    table = read_json(path)
    assert table == PUBLISHED[component]
    assert class_name(PARTS[component], table, path) in known_classes(PARTS[component])
    kept = checked_config(PARTS[component], table, path)
    assert kept.items() <= table.items() and keys_passed_over(PARTS[component], table) == []
    without_effect = {
        "text_encoder": "dropout attention_dropout initializer_factor initializer_range projection_dim bos_token_id "
        "eos_token_id pad_token_id",
        "tokenizer": "add_prefix_space do_lower_case errors special_tokens_map_file tokenizer_class",
    }.get(component, "")
    notes = "_class_name _diffusers_version _name_or_path architectures model_type torch_dtype transformers_version"
    assert set(table) - set(kept) <= {*notes.split(), "name_or_path", *without_effect.split()}


@pytest.mark.parametrize("name", settings.config_names("models"))
def test_the_shipped_models_are_let_through(name: str) -> None:
    config = settings.read_config("models", name)
    for part in family_of_configs(config).parts:
        assert class_name(part, config[part.name], PATH) in (part.classes or SCHEDULERS)
        assert checked_config(part, config[part.name], PATH) or part.vocabulary is not None
        assert keys_passed_over(part, config[part.name]) == []


def test_configs_saved_by_today_s_libraries_are_let_through_without_the_settings_of_other_families() -> None:
    unet = checked_config(PARTS["unet"], RESAVED_UNET, PATH)
    assert unet["only_cross_attention"] == [False, False, False, True]
    assert unet["time_cond_proj_dim"] is None and not {"addition_embed_type_num_heads", "_name_or_path"} & set(unet)
    scheduler = checked_config(PARTS["scheduler"], RESAVED_SCHEDULER, PATH)
    assert len(scheduler["trained_betas"]) == 1000 and "flow_shift" not in scheduler
    text = {"return_dict": True, "pruned_heads": {}, "tie_word_embeddings": True, "is_decoder": False, "hidden_size": 8}
    assert checked_config(PARTS["text_encoder"], text, PATH) == {"hidden_size": 8}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PNDMScheduler", {"lambda_min_clipped": -math.inf}),
        ("PNDMScheduler", {"lambda_min_clipped": math.nan, "sigma_max": math.inf, "solver_p": {"a": 1}}),
        ("PNDMScheduler", {"solver_order": "nine", "algorithm_type": "nope", "predict_epsilon": True}),
        ("EulerDiscreteScheduler", {"lambda_min_clipped": -math.inf, "tensor_format": "pt", "skip_prk_steps": "yes"}),
        ("IPNDMScheduler", {"beta_schedule": "nope", "timestep_spacing": None, "steps_offset": "one"}),
        ("DDIMScheduler", {"variance_type": "nope", "sigma_data": math.inf, "timesteps": [1, 2], "_new": {"a": []}}),
    ],
)
def test_what_is_left_over_from_another_scheduler_may_be_anything(name: str, settings: dict[str, Any]) -> None:
    table = {"_class_name": name, "num_train_timesteps": 1000, **settings}
    kept = checked_config(PARTS["scheduler"], table, PATH)
    assert not kept.keys() - {"num_train_timesteps", "lambda_min_clipped"}


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"])
def test_infinity_is_let_through_where_the_scheduler_wants_it_and_nan_is_not(name: str, refused: Refused) -> None:
    table = {"_class_name": name, "lambda_min_clipped": json.loads("-Infinity"), "variance_type": None}
    assert checked_config(PARTS["scheduler"], table, PATH)["lambda_min_clipped"] == -math.inf
    for key, value in (("lambda_min_clipped", math.nan), ("sample_max_value", math.inf), ("beta_end", math.inf)):
        with refused(1, "config.json", f"'{key}'"):
            checked_config(PARTS["scheduler"], {**table, key: value}, PATH)


def test_an_old_way_to_say_what_the_model_predicts_is_understood() -> None:
    for said, prediction in ((False, "sample"), (True, "epsilon"), (None, "epsilon")):
        table = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "predict_epsilon": said}
        assert checked_config(PARTS["scheduler"], table, PATH) == {"prediction_type": prediction}


def test_a_scheduler_has_the_class_of_the_model_s_index_and_its_settings_are_looked_at_for_that(tiny: Path) -> None:
    model = Path("model")
    shutil.copytree(tiny, model)
    index, config = model / "model_index.json", model / "scheduler" / "scheduler_config.json"
    table = json.loads(config.read_text())
    for named in ({}, {"_class_name": "DDIMScheduler"}):
        config.write_text(json.dumps({k: v for k, v in table.items() if k != "_class_name"} | named))
        for kind in ("DDIMScheduler", "EulerDiscreteScheduler"):
            index.write_text(json.dumps({"scheduler": ["diffusers", kind]}))
            assert open_model("m", model).parts["scheduler"].class_name == kind
    config.write_text(json.dumps({**table, "use_karras_sigmas": "yes"}))
    with pytest.raises(SdcliError, match="'use_karras_sigmas' to what"):
        open_model("m", model)
    index.write_text(json.dumps({"scheduler": ["diffusers", "DDIMScheduler"]}))
    assert "use_karras_sigmas" not in open_model("m", model).parts["scheduler"].config
    index.unlink()
    config.write_text(json.dumps({k: v for k, v in table.items() if k != "_class_name"}))
    with pytest.raises(SdcliError, match="names no class: refused; a scheduler may be"):
        open_model("m", model)


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "DDIMInverseScheduler", "VQDiffusionScheduler"])
def test_a_scheduler_that_cannot_draw_is_refused_with_all_that_can(name: str, refused: Refused) -> None:
    every = [name.removesuffix("Scheduler") for name in SCHEDULERS]
    with refused(1, f"'{name}'", "edit _class_name", *every):
        class_name(PARTS["scheduler"], {"_class_name": name}, PATH)


def test_settings_that_need_scipy_say_so(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True}
    monkeypatch.setattr(schedulers, "find_spec", lambda name: None)
    with refused(1, "config.json", "use_beta_sigmas", "scipy"):
        checked_config(PARTS["scheduler"], table, PATH)
    assert checked_config(PARTS["scheduler"], {**table, "_class_name": "DDIMScheduler"}, PATH)
    monkeypatch.setattr(schedulers, "find_spec", lambda name: name)
    assert checked_config(PARTS["scheduler"], table, PATH) == {"use_beta_sigmas": True}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_table_is_a_class_of_that_name(name: str) -> None:
    assert class_name(PARTS["scheduler"], {"_class_name": name}, PATH) == name


@pytest.mark.parametrize(
    ("component", "table"),
    [
        ("unet", {"_class_name": "UNet3DConditionModel"}),
        ("unet", {"_class_name": "FluxTransformer2DModel"}),
        ("unet", {"_class_name": "AutoencoderKL"}),
        ("unet", {"_class_name": "os.system"}),
        ("unet", {"_class_name": "unet2dconditionmodel"}),
        ("unet", {"_class_name": "UNet2DConditionModel\n"}),
        ("unet", {"_class_name": "\x1b[31m" + "x" * 10_000}),
        ("vae", {"_class_name": "VQModel"}),
        ("scheduler", {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
        ("scheduler", {"_class_name": "scheduling_ddim"}),
        ("text_encoder", {"architectures": ["T5EncoderModel"]}),
        ("text_encoder", {"architectures": "T5EncoderModel"}),
        ("text_encoder", {"architectures": ["CLIPTextModel"], "_class_name": "Evil"}),
        ("tokenizer", {"tokenizer_class": "T5Tokenizer"}),
        ("tokenizer", {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_a_class_that_is_not_in_the_table_is_refused(refused: Refused, component: str, table: dict[str, Any]) -> None:
    with refused(1, "config.json", "asks for the class", "refused", f"a {component} may be"):
        class_name(PARTS[component], table, PATH)


@pytest.mark.parametrize("name", [None, "", 0, False, 1, 1.5, [], {}, ["UNet2DConditionModel"], {"a": {}}], ids=repr)
def test_a_class_that_is_no_word_is_refused(refused: Refused, name: object) -> None:
    with refused(1, "config.json", "refused"):
        class_name(PARTS["unet"], {"_class_name": name}, PATH)


@pytest.mark.parametrize(
    "architectures", [7, True, {"0": "CLIPTextModel"}, {"a": 1}, [[]], [{}], [None], [["CLIPTextModel"]], [1]], ids=repr
)
def test_architectures_of_a_wrong_type_are_refused(refused: Refused, architectures: object) -> None:
    with refused(1, "config.json", "names no class", "refused"):
        class_name(PARTS["text_encoder"], {"architectures": architectures}, PATH)


def test_a_unet_that_names_no_class_is_refused(refused: Refused) -> None:
    with refused(1, "config.json", "names no class", "UNet2DConditionModel"):
        class_name(PARTS["unet"], {"architectures": ["UNet2DConditionModel"]}, PATH)


@pytest.mark.parametrize("table", [{}, {"architectures": None}, {"architectures": []}])
def test_a_text_encoder_or_tokenizer_that_names_no_class_is_clip_s(table: dict[str, Any]) -> None:
    assert class_name(PARTS["text_encoder"], table, PATH) == "CLIPTextModel"
    assert class_name(PARTS["tokenizer"], table, PATH) == "CLIPTokenizer"
    assert class_name(PARTS["tokenizer"], {"tokenizer_class": None}, PATH) == "CLIPTokenizer"


@pytest.mark.parametrize("component", PARTS)
@pytest.mark.parametrize(
    "key",
    [
        "_attn_implementation",
        "decay",
        "__class__",
        "self",
        "",
        "Sample_Size",
        "sample_size ",
        "\u202eezis_elpmas",
        "x" * 5000,
    ],
)
def test_an_unknown_setting_reaches_no_constructor_whatever_its_value(component: str, key: str) -> None:
    plain = checked_config(PARTS[component], PUBLISHED[component], PATH)
    for value in (None, False, "evil.py--Evil", {"AutoModel": "evil.Evil"}, [[[[]]]], math.nan):
        assert checked_config(PARTS[component], {**PUBLISHED[component], key: value}, PATH) == plain
        assert keys_passed_over(PARTS[component], {**PUBLISHED[component], key: value}) == [key]


@pytest.mark.parametrize("component", PARTS)
@pytest.mark.parametrize("key", ["auto_map", "custom_pipeline", "trust_remote_code"])
def test_a_setting_that_names_code_is_refused_whatever_its_value(refused: Refused, component: str, key: str) -> None:
    for value in (None, False, "evil.py--Evil", {"AutoModel": "evil.Evil"}):
        with refused(1, "config.json", f"'{key}'", "no code that a model brings is run"):
            checked_config(PARTS[component], {**PUBLISHED[component], key: value}, PATH)


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "addition_embed_type", "text_time"),
        ("unet", "addition_time_embed_dim", 256),
        ("unet", "projection_class_embeddings_input_dim", 2816),
        ("unet", "encoder_hid_dim", 4096),
        ("unet", "encoder_hid_dim_type", "text_proj"),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "num_class_embeds", 1000),
        ("unet", "num_class_embeds", 1),
        ("unet", "class_embeddings_concat", True),
        ("unet", "dual_cross_attention", True),
        ("unet", "num_attention_heads", 8),
        ("unet", "attention_type", "gated"),
        ("unet", "cross_attention_norm", "layer_norm"),
        ("unet", "quantization_config", {"load_in_8bit": True}),
        ("unet", "addition_embed_type_num_heads", 32),
        ("unet", "encoder_hid_dim", [1]),
        ("unet", "encoder_hid_dim", {"a": 1}),
        ("unet", "encoder_hid_dim", math.nan),
        ("vae", "shift_factor", 0.0609),
        ("vae", "latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("text_encoder", "is_causal", False),
        ("text_encoder", "use_attention_mask", True),
        ("tokenizer", "fast_tokenizer_files", ["../tokenizer.4.json"]),
        ("scheduler", "use_flow_sigmas", True),
        ("scheduler", "use_dynamic_shifting", True),
        ("scheduler", "flow_shift", 3.0),
    ],
)
def test_a_setting_of_another_family_is_refused_by_name_when_it_is_set(
    refused: Refused, component: str, key: str, value: object
) -> None:
    with refused(1, "config.json", f"'{key}'", "another family"):
        checked_config(PARTS[component], {**PUBLISHED[component], key: value}, PATH)


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("unet", "act_fn", {"a": 1}),
        ("unet", "act_fn", "x" * 65),
        ("unet", "act_fn", "nope"),
        ("unet", "act_fn", None),
        ("unet", "attention_head_dim", 0),
        ("unet", "attention_head_dim", [8, 8, 0, 8]),
        ("unet", "attention_head_dim", -8),
        ("unet", "attention_head_dim", "8"),
        ("unet", "attention_head_dim", 8.0),
        ("unet", "attention_head_dim", None),
        ("unet", "norm_num_groups", 0),
        ("unet", "norm_num_groups", -32),
        ("unet", "norm_num_groups", None),
        ("unet", "norm_eps", 0),
        ("unet", "norm_eps", "1e-5"),
        ("unet", "layers_per_block", 0),
        ("unet", "layers_per_block", None),
        ("unet", "cross_attention_dim", 0),
        ("unet", "cross_attention_dim", "768"),
        ("unet", "transformer_layers_per_block", 0),
        ("unet", "transformer_layers_per_block", [[1], [1]]),
        ("unet", "only_cross_attention", [0, 1, 0, 1]),
        ("unet", "downsample_padding", 2),
        ("unet", "mid_block_scale_factor", 0),
        ("unet", "conv_in_kernel", 0),
        ("unet", "conv_out_kernel", 2),
        ("unet", "freq_shift", "0"),
        ("unet", "flip_sin_to_cos", "yes"),
        ("unet", "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("unet", "resnet_time_scale_shift", "spatial"),
        ("unet", "time_embedding_type", "nope"),
        ("unet", "block_out_channels", [32] * 8),
        ("vae", "norm_num_groups", 0),
        ("vae", "layers_per_block", [2, 2, 2, 2.5]),
        ("vae", "use_quant_conv", 1),
        ("vae", "latent_channels", 0),
        ("vae", "act_fn", "nope"),
        ("text_encoder", "num_hidden_layers", 0),
        ("text_encoder", "num_attention_heads", 0),
        ("text_encoder", "hidden_size", -768),
        ("text_encoder", "vocab_size", 0),
        ("text_encoder", "vocab_size", "49408"),
        ("text_encoder", "hidden_act", "nope"),
        ("text_encoder", "layer_norm_eps", 0),
        ("unet", "down_block_types", [[["DownBlock2D"]]]),
        ("unet", "down_block_types", ["DownBlock2D"] * 33),
        ("unet", "down_block_types", [{"a": 1}]),
        ("unet", "norm_eps", math.nan),
        ("unet", "norm_eps", math.inf),
        ("unet", "in_channels", 10**12),
        ("unet", "in_channels", -(10**12)),
        ("unet", "layers_per_block", 65),
        ("unet", "layers_per_block", [2, 2, 2, 10**5]),
        ("unet", "transformer_layers_per_block", [[1, 10**5]]),
        ("unet", "sample_size", "64"),
        ("unet", "sample_size", "x"),
        ("unet", "sample_size", 0),
        ("unet", "sample_size", -64),
        ("unet", "sample_size", 64.5),
        ("unet", "sample_size", True),
        ("unet", "sample_size", []),
        ("unet", "sample_size", [64, "64"]),
        ("unet", "sample_size", [64, None]),
        ("unet", "block_out_channels", 320),
        ("unet", "block_out_channels", "320"),
        ("unet", "block_out_channels", None),
        ("unet", "block_out_channels", []),
        ("unet", "block_out_channels", [320, [640]]),
        ("unet", "time_cond_proj_dim", True),
        ("unet", "time_cond_proj_dim", 2),
        ("unet", "time_cond_proj_dim", "256"),
        ("unet", "time_cond_proj_dim", [256]),
        ("unet", "time_cond_proj_dim", 10**9),
        ("vae", "scaling_factor", "0.18215"),
        ("vae", "scaling_factor", None),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", True),
        ("vae", "scaling_factor", -1),
        ("text_encoder", "num_hidden_layers", 10**6),
        ("text_encoder", "max_position_embeddings", 2),
        ("text_encoder", "max_position_embeddings", None),
        ("text_encoder", "max_position_embeddings", "77"),
        ("text_encoder", "max_position_embeddings", 10**9),
        ("scheduler", "num_train_timesteps", 10**9),
        ("scheduler", "trained_betas", [0.1] * 1001),
        ("scheduler", "trained_betas", [[[0.1]]]),
        ("scheduler", "beta_start", -math.inf),
        ("scheduler", "beta_start", math.nan),
        ("scheduler", "beta_start", None),
        ("scheduler", "beta_end", "0.012"),
        ("scheduler", "beta_end", 10**400),
        ("scheduler", "num_train_timesteps", None),
        ("scheduler", "num_train_timesteps", 0),
        ("scheduler", "num_train_timesteps", -1000),
        ("scheduler", "num_train_timesteps", 1000.0),
        ("scheduler", "num_train_timesteps", "1000"),
        ("scheduler", "num_train_timesteps", True),
        ("scheduler", "beta_schedule", "nope"),
        ("scheduler", "beta_schedule", None),
        ("scheduler", "prediction_type", "nope"),
        ("scheduler", "prediction_type", None),
        ("scheduler", "timestep_spacing", "nope"),
        ("scheduler", "timestep_spacing", 3),
        ("scheduler", "trained_betas", [0.1, None]),
        ("scheduler", "trained_betas", [0.1, math.nan]),
        ("scheduler", "trained_betas", "none"),
        ("scheduler", "skip_prk_steps", "true"),
        ("scheduler", "steps_offset", math.inf),
        ("scheduler", "steps_offset", [1]),
    ],
)
def test_a_value_that_no_model_has_is_refused(refused: Refused, component: str, key: str, value: object) -> None:
    with refused(1, "config.json", f"'{key}'", "refused"):
        checked_config(PARTS[component], {**PUBLISHED[component], key: value}, PATH)


@pytest.mark.parametrize(
    ("component", "key", "value", "said"),
    [
        ("unet", "act_fn", "nope", "('nope')"),
        ("unet", "norm_num_groups", None, "('null')"),
        ("unet", "norm_eps", math.nan, "('NaN')"),
        ("vae", "use_quant_conv", 1, "('1')"),
        ("vae", "act_fn", "\x1b[31m" + "x" * 99, "('\\x1b[31mxxxx"),
        ("text_encoder", "hidden_size", [1] * 99, "('[1, 1, 1, 1, 1, 1, ...]')"),
        ("unet", "down_block_types", [[[[[[[[[["x"]]]]]]]]]], "('[[[[[[[...]]]]]]]')"),
        ("scheduler", "skip_prk_steps", "true", "('true')"),
        ("scheduler", "beta_end", 10**400, "('1000000"),
        ("unet", "attention_type", "gated", "to 'gated'"),
        ("scheduler", "flow_shift", 3.0, "to '3.0'"),
    ],
)
def test_a_refused_value_is_shown(refused: Refused, component: str, key: str, value: object, said: str) -> None:
    with refused(1, f"'{key}'", said):
        checked_config(PARTS[component], {**PUBLISHED[component], key: value}, PATH)


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("unet", {"block_out_channels": [320, 640]}, ["2 'block_out_channels'", "4 for 'down_block_types'"]),
        ("unet", {"down_block_types": ["DownBlock2D"]}, ["4 'block_out_channels'", "1 for 'down_block_types'"]),
        ("unet", {"up_block_types": ["UpBlock2D"] * 5}, ["5 for 'up_block_types'"]),
        ("unet", {"attention_head_dim": [8, 8]}, ["2 for 'attention_head_dim'"]),
        ("unet", {"layers_per_block": [2, 2, 2]}, ["3 for 'layers_per_block'"]),
        ("unet", {"cross_attention_dim": [768] * 5}, ["5 for 'cross_attention_dim'"]),
        ("unet", {"only_cross_attention": [True]}, ["1 for 'only_cross_attention'"]),
        ("unet", {"block_out_channels": [320, 650, 1280, 1280]}, ["650", "32 'norm_num_groups' do not divide"]),
        ("unet", {"norm_num_groups": 7}, ["320", "7 'norm_num_groups' do not divide"]),
        ("unet", {"attention_head_dim": 641}, ["641 attention heads for 320 channels"]),
        ("unet", {"down_block_types": ["KDownBlock2D"] * 4}, ["block 'KDownBlock2D'", "not supported"]),
        ("unet", {"up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4}, ["block 'SimpleCrossAttnUpBlock2D'"]),
        ("unet", {"up_block_types": ["UpDecoderBlock2D"] * 4}, ["block 'UpDecoderBlock2D'"]),
        ("unet", {"down_block_types": ["os.system"] * 4}, ["block 'os.system'"]),
        ("vae", {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, ["block 'AttnDownEncoderBlock2D'"]),
        ("vae", {"block_out_channels": [128, 256, 512]}, ["3 'block_out_channels'", "4 for"]),
        ("vae", {"layers_per_block": [2, 2, 2, 2]}, ["a list for 'layers_per_block'"]),
        ("unet", {"layers_per_block": 64, "transformer_layers_per_block": [1, 2, 10, 64]}, ["more than 256 layers"]),
        ("vae", {"norm_num_groups": 48}, ["128", "48 'norm_num_groups' do not divide"]),
        ("text_encoder", {"num_attention_heads": 7}, ["'hidden_size' of 768", "7 'num_attention_heads' do not divide"]),
    ],
    ids=repr,
)
def test_settings_that_describe_no_network_together_are_refused(
    refused: Refused, component: str, changes: dict[str, Any], words: list[str]
) -> None:
    with refused(1, "config.json", "refused", *words):
        checked_config(PARTS[component], {**PUBLISHED[component], **changes}, PATH)


def test_a_network_that_says_nothing_of_its_levels_is_what_the_library_takes_it_for(refused: Refused) -> None:
    assert checked_config(PARTS["unet"], {}, PATH) == {} == checked_config(PARTS["vae"], {}, PATH)
    with refused(1, "config.json", "2 'block_out_channels' and no 'down_block_types'"):
        checked_config(PARTS["unet"], {"block_out_channels": [320, 640]}, PATH)
    levels = {"down_block_types": ["UNetResDownBlock2D"] * 2, "up_block_types": ["UNetResUpBlock2D"] * 2}
    assert checked_config(PARTS["unet"], {"block_out_channels": [320, 640], **levels}, PATH)["up_block_types"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b"<html>404</html>",
        b"\x80\x04}\x94.",
        b'{"a": "\xff"}',
        "{}".encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_config_that_is_not_json_is_refused(tmp_path: Path, refused: Refused, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with refused(1, "config.json", "not valid JSON"):
        read_json(path)


@pytest.mark.parametrize("content", ["[]", "null", "1", '"text"', '[{"_class_name": "AutoencoderKL"}]'])
def test_a_config_that_is_no_table_is_refused(tmp_path: Path, refused: Refused, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, "utf-8")
    with refused(1, "config.json", "not a table"):
        read_json(path)


def test_nesting_just_short_of_what_json_refuses_is_refused_too(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "config.json"
    for depth in range(900, sys.getrecursionlimit() + 20, 2):
        path.write_text('{"architectures":' + "[" * depth + "]" * depth + "}", "utf-8")
        with refused(1, "config.json"):
            table = read_json(path)
            class_name(PARTS["text_encoder"], table, path)
        with refused(1, "config.json"):
            checked_config(PARTS["unet"], {"encoder_hid_dim": read_json(path)["architectures"]}, path)


def test_a_huge_config_is_refused_without_being_read(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(2**33)
    tracemalloc.start()
    try:
        with refused(1, "config.json", "too large"):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
    path.write_bytes(b"{}".ljust(CONFIG_LIMIT_BYTES))
    assert read_json(path) == {}
    path.write_bytes(b"{}".ljust(CONFIG_LIMIT_BYTES + 1))
    with refused(1, "config.json", "too large"):
        read_json(path)


@pytest.mark.timeout(20)
def test_what_is_not_a_readable_file_is_refused_without_waiting(
    open_folder: Path, refused: Refused, unprivileged: Callable[[], AbstractContextManager[None]]
) -> None:
    with refused(1, "absent.json", "No such file"):
        read_json(open_folder / "absent.json")
    (open_folder / "folder.json").mkdir()
    with refused(1, "folder.json", "not a regular file"):
        read_json(open_folder / "folder.json")
    (open_folder / "loop.json").symlink_to("loop.json")
    with refused(1, "loop.json", "symbolic links"):
        read_json(open_folder / "loop.json")
    if hasattr(os, "mkfifo"):
        os.mkfifo(open_folder / "pipe.json")
        (open_folder / "zero.json").symlink_to("/dev/zero")
        for name in ("pipe.json", "zero.json"):
            with refused(1, name, "not a regular file"):
                read_json(open_folder / name)
    path = open_folder / "secret.json"
    path.write_text("{}", "utf-8")
    path.chmod(0)
    with unprivileged(), refused(1, "secret.json", "Permission denied"):
        read_json(path)


def test_this_room_imports_no_library_of_the_trade() -> None:
    script = """
import importlib, pkgutil, sys
import sdcli.errors, sdcli.models, sdcli.settings, sdcli.units
names = [module.name for module in pkgutil.iter_modules(sdcli.models.__path__)]
for name in names:
    importlib.import_module(f"sdcli.models.{name}")
print(len(names), sorted({name.partition(".")[0] for name in sys.modules} & set(sys.argv[1:])))
"""
    heavy = ["torch", "numpy", "diffusers", "transformers", "accelerate", "safetensors", "tokenizers", "PIL"]
    heavy += ["huggingface_hub", "importlib_metadata"]
    done = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    count, loaded = done.stdout.strip().split(" ", 1)
    assert int(count) >= 5 and loaded == "[]"


def test_opening_a_hostile_config_imports_nothing(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')", "utf-8")
    before = set(sys.modules)
    for table in (
        {"_class_name": "evil.Evil"},
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": "UNet2DConditionModel", "auto_map": {"AutoModel": "evil.Evil"}},
    ):
        with refused(1, "config.json", "refused"):
            class_name(PARTS["unet"], table, tmp_path / "config.json")
            checked_config(PARTS["unet"], table, tmp_path / "config.json")
    assert set(sys.modules) == before


def test_a_byte_order_mark_before_a_config_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json") == {"a": 1}


@pytest.mark.parametrize("factor", [1e-30, 1e30, 0, -0.18215])
def test_latents_of_an_absurd_scale_are_refused(refused: Refused, factor: float) -> None:
    with refused(1, "'scaling_factor'"):
        checked_config(PARTS["vae"], {"scaling_factor": factor}, PATH)
