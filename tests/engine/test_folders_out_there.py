"""Folders as other versions and tools leave them, each against diffusers' own pipeline: at most 1/255."""

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
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from sdcli.errors import SdcliError
from sdcli.families.sd.autoencoder import borrow_decoder, borrow_encoder
from sdcli.models.opened import open_model
from sdcli.models.reference import resolve_model
from tests.engine.test_same_picture import gradient, reference
from tests.folders import made
from tests.networks import borrowing
from tests.support import ASTRONAUT, draw, largest_difference

REQUEST = replace(ASTRONAUT, prompt="a fox in the rain!", negative="ugly", steps=2)
SHARDS = {"text_encoder": "model", "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


@pytest.fixture(scope="module")
def theirs(tiny: Path) -> torch.Tensor:
    """The tiny model's picture, by diffusers."""
    return reference(tiny, REQUEST)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to change."""
    return shutil.copytree(tiny, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def weights(model: Path, part: str) -> Path:
    return model / part / f"{SHARDS[part]}.safetensors"


def rename_tensors(rename: Callable[[str], str], **more: list[int]) -> Callable[[Path], None]:
    """Give the text encoder's tensors other names, and others besides."""

    def change(model: Path) -> None:
        tensors = {rename(name): tensor for name, tensor in load_file(weights(model, "text_encoder")).items()}
        extra = {name: torch.ones(shape).half() for name, shape in more.items()}
        save_file({**tensors, **extra}, weights(model, "text_encoder"))

    return change


def prefixed(name: str) -> str:
    return f"text_model.{name}"


def whole_clip(model: Path) -> None:
    """The folder of a CLIPModel in the text encoder's place, as openai publishes it."""
    more = {"logit_scale": [], "text_projection.weight": [32, 32], "visual_projection.weight": [32, 32]}
    more |= {"vision_model.encoder.layers.0.mlp.fc1.weight": [8, 8], "vision_model.embeddings.position_ids": [1, 5]}
    rename_tensors(prefixed, **more)(model)
    path = model / "text_encoder" / "config.json"
    text = json.loads(path.read_text("utf-8"))
    del text["architectures"]
    table = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 32, "logit_scale_init_value": 2.6}
    path.write_text(json.dumps({**table, "text_config": text, "text_config_dict": {}, "vision_config": {}}), "utf-8")


def position_ids(model: Path) -> None:
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(weights(model, "text_encoder")).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77).expand(1, -1).contiguous()
    save_file(tensors, weights(model, "text_encoder"))


def leftovers(model: Path) -> None:
    """Keys of every version since 2022 in each of the configs."""
    ema = {"decay": 0.9999, "inv_gamma": 1.0, "min_decay": 0.0, "optimization_step": 15000, "power": 0.6666666666666666}
    ema |= {"update_after_step": 0, "use_ema_warmup": False, "dropout": 0.0, "num_attention_heads": None}
    edit(model / "unet" / "config.json", **ema, attention_type="default", mid_block_only_cross_attention=None)
    edit(model / "vae" / "config.json", block_size=2, _name_or_path="x/y", shift_factor=None, latents_mean=None)
    old = {"return_dict": True, "output_hidden_states": True, "torchscript": True, "pruned_heads": {}, "num_beams": 4}
    old |= {"is_decoder": True, "add_cross_attention": True, "id2label": {"0": "LABEL_0"}, "eos_token_id": 2}
    edit(model / "text_encoder" / "config.json", **old, bos_token_id=None, attention_dropout=0, projection_dim=None)
    new = {"extra_special_tokens": {}, "additional_special_tokens": [], "processor_class": "CLIPProcessor"}
    new |= {"use_fast": True, "name_or_path": "x/y", "truncation_side": "right", "chat_template": "{{ 1/0 }}"}
    edit(model / "tokenizer" / "tokenizer_config.json", **new, tokenizer_class="CLIPTokenizerFast")


def variants(name_of: Callable[[str], str]) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for part, stem in SHARDS.items():
            weights(model, part).rename(model / part / name_of(stem))

    return change


def sharded(name_of: Callable[[str, int], str], index: str | None = None) -> Callable[[Path], None]:
    """Split the weights in two, and write the index that diffusers wants."""

    def change(model: Path) -> None:
        for part, stem in SHARDS.items():
            tensors = load_file(weights(model, part))
            weights(model, part).unlink()
            names, places = sorted(tensors), {}
            for number, some in enumerate((names[::2], names[1::2]), start=1):
                save_file({name: tensors[name] for name in some}, model / part / name_of(stem, number))
                places |= dict.fromkeys(some, name_of(stem, number))
            if index is not None:
                text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
                (model / part / index.format(stem)).write_text(text, "utf-8")

    return change


def one_file_tokenizer(model: Path) -> None:
    library = CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    for path in (model / "tokenizer").iterdir():
        path.unlink()
    library.save_pretrained(model / "tokenizer")
    assert (model / "tokenizer" / "tokenizer.json").is_file() and not (model / "tokenizer" / "merges.txt").exists()


def both_tokenizers(model: Path) -> None:
    CLIPTokenizer.from_pretrained(model / "tokenizer", local_files_only=True).save_pretrained(model / "tokenizer")
    (model / "tokenizer" / "merges.txt").write_text("of another version\n", "utf-8")


def old_tokenizer(model: Path) -> None:
    """Special tokens in a file of their own, as tables."""
    table = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    tokens = {"bos_token": {**table, "content": "<|startoftext|>"}, "eos_token": table, "unk_token": table}
    (model / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({**tokens, "pad_token": "<|endoftext|>"}))
    (model / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}', "utf-8")


OLD_ATTENTION = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def old_attention(model: Path) -> None:
    """The autoencoder's attention by its names before diffusers 0.15."""
    tensors = load_file(weights(model, "vae"))
    for new, old in OLD_ATTENTION.items():
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert sum(".proj_attn." in name for name in tensors) == 4
    save_file(tensors, weights(model, "vae"))


def other_parts(model: Path) -> None:
    """What pipelines had beside a model, damaged here: nothing of it is opened."""
    index = json.loads((model / "model_index.json").read_text("utf-8"))
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (model / "model_index.json").write_text(json.dumps(index), "utf-8")
    for name in ("safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json"):
        (model / name).parent.mkdir()
        (model / name).write_bytes(b"damaged")


SAME_PICTURE: dict[str, Callable[[Path], None]] = {
    "leftovers": leftovers,
    "unused projection": rename_tensors(str, **{"text_projection.weight": [32, 32]}),
    "projection and prefix": rename_tensors(prefixed, **{"text_projection.weight": [16, 32]}),
    "named with projection": lambda m: edit(
        m / "text_encoder/config.json", architectures=["CLIPTextModelWithProjection"]
    ),
    "whole CLIP": whole_clip,
    "position ids": position_ids,
    "attention of old": old_attention,
    "other parts": other_parts,
    "shards": sharded(lambda stem, n: f"{stem}-{n:05}-of-00002.safetensors", "{}.safetensors.index.json"),
    "fp16 shards": sharded(lambda stem, n: f"{stem}.fp16-{n:05}-of-00002.safetensors"),
    "older fp16 shards": sharded(lambda stem, n: f"{stem}-{n:05}-of-00002.fp16.safetensors"),
    "bf16 shards": sharded(lambda stem, n: f"{stem}.bf16-{n:05}-of-00002.safetensors"),
    "fp16": variants(lambda stem: f"{stem}.fp16.safetensors"),
    "non_ema": variants(lambda stem: f"{stem}.non_ema.safetensors"),
    "no index": lambda m: (m / "model_index.json").unlink(),
    "tokenizer in one file": one_file_tokenizer,
    "tokenizer in both forms": both_tokenizers,
    "tokens of old": old_tokenizer,
}

NOT_BY_THEM = {"non_ema", "fp16", "fp16 shards", "older fp16 shards", "bf16 shards", "no index", "other parts"}
"""What diffusers opens only when told of the variant, or not without its index."""


@pytest.mark.every(4)
@pytest.mark.parametrize("kind", SAME_PICTURE)
def test_what_is_laid_out_otherwise_is_the_same_picture(model: Path, theirs: torch.Tensor, kind: str) -> None:
    SAME_PICTURE[kind](model)
    assert largest_difference(draw(model, request=REQUEST), theirs) <= 1
    if kind not in NOT_BY_THEM:
        assert torch.equal(reference(model, REQUEST), theirs), "diffusers itself draws another picture"


def test_what_was_passed_over_and_what_was_taken_can_be_said(model: Path) -> None:
    leftovers(model)
    assert {"decay", "power"} <= set(open_model("m", model).parts["unet"].passed_over)
    assert "block_size" in open_model("m", model).parts["vae"].passed_over and open_model("m", model).notes == ()
    SAME_PICTURE["non_ema"](model)
    assert [note.partition(":")[0] for note in open_model("m", model).notes] == list(SHARDS)
    assert all("'non_ema'" in note for note in open_model("m", model).notes)


SECOND: dict[str, dict[str, Any]] = {
    "unet": {"use_linear_projection": True, "attention_head_dim": [2, 4], "dual_cross_attention": False},
    "text_encoder": {"hidden_act": "gelu", "projection_dim": 512},
    "tokenizer": {"pad_token": "!"},
}
"""The base model of Stable Diffusion 2, as its published configs differ."""

NETWORKS: dict[str, dict[str, dict[str, Any]]] = {
    "only_cross_attention": {"unet": {"only_cross_attention": [True, False], "mid_block_only_cross_attention": True}},
    "scale_shift": {"unet": {"resnet_time_scale_shift": "scale_shift", "resnet_skip_time_act": True}},
    "scales": {"unet": {"resnet_out_scale_factor": 1.5, "mid_block_scale_factor": 2}},
    "no middle": {"unet": {"mid_block_type": None, "layers_per_block": [1, 2]}},
    "plain middle": {"unet": {"mid_block_type": "UNetMidBlock2D"}},
    "attention without words": {
        "unet": {
            "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "AttnUpBlock2D"],
        }
    },
    "residual change of size": {
        "unet": {
            "down_block_types": ["ResnetDownsampleBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "ResnetUpsampleBlock2D"],
        }
    },
    "times": {"unet": {"time_embedding_type": "fourier", "time_embedding_dim": 64, "timestep_post_act": "silu"}},
    "kernels": {"unet": {"conv_in_kernel": 1, "conv_out_kernel": 5, "downsample_padding": 0, "act_fn": "mish"}},
    "phases": {"unet": {"flip_sin_to_cos": False, "freq_shift": 1, "center_input_sample": True, "norm_eps": 1e-3}},
    "linear projections, old names of blocks": {
        "unet": {
            "use_linear_projection": True,
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [2, 1],
            "cross_attention_dim": [32, 32],
            "down_block_types": ["UNetResCrossAttnDownBlock2D", "UNetResDownBlock2D"],
        }
    },
    "plain autoencoder": {
        "vae": {
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "mid_block_add_attention": False,
            "act_fn": "gelu",
        }
    },
    "16 latent channels": {
        "vae": {"latent_channels": 16, "scaling_factor": 1},
        "unet": {"in_channels": 16, "out_channels": 16},
        "text_encoder": {"hidden_act": "gelu", "layer_norm_eps": 1e-3},
    },
    "Stable Diffusion 2": SECOND,
    "Stable Diffusion 2 that predicts v": {
        **SECOND,
        "unet": {**SECOND["unet"], "upcast_attention": True},
        "scheduler": {"prediction_type": "v_prediction"},
    },
    "short prompts": {"tokenizer": {"model_max_length": 20}},
    "padded left": {"tokenizer": {"padding_side": "left"}},
    "padded with !": {"tokenizer": {"pad_token": "!"}},
    "tokens of one's own": {"tokenizer": {"additional_special_tokens": ["fo"], "mask_token": "ra"}},
    **{
        f"autoencoder of {levels} levels": {
            "vae": {
                "block_out_channels": [16] * levels,
                "down_block_types": ["DownEncoderBlock2D"] * levels,
                "up_block_types": ["UpDecoderBlock2D"] * levels,
            }
        }
        for levels in (1, 3, 5)
    },
}


@pytest.mark.every(6)
@pytest.mark.parametrize("kind", NETWORKS)
def test_other_networks_of_the_family_draw_what_diffusers_draws(tmp_path: Path, kind: str) -> None:
    changed = made(tmp_path / "model", NETWORKS[kind])
    side = 16 if "1 levels" in kind else 64
    request = replace(REQUEST, prompt="a fox!", width=side, height=side)
    assert largest_difference(draw(changed, request=request), reference(changed, request)) <= 1


def test_an_autoencoder_of_three_levels_edits_pictures_of_its_size(tmp_path: Path) -> None:
    changed = made(tmp_path / "model", NETWORKS["autoencoder of 3 levels"])
    request, init = replace(REQUEST, strength=0.5, steps=4), gradient(64, 64)
    ours = draw(changed, request=request, payload=init.tobytes())
    assert ours.shape == (64, 64, 3)
    assert largest_difference(ours, reference(changed, request, init)) <= 1


def test_the_top_folder_of_the_hub_s_cache_is_its_main_snapshot(
    tiny: Path, tmp_path: Path, theirs: torch.Tensor
) -> None:
    top = tmp_path / "hub" / "models--somebody--tiny"
    for index, path in enumerate(sorted(path for path in tiny.rglob("*") if path.is_file())):
        blob = top / "blobs" / f"{index:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = top / "snapshots" / ("a" * 40) / path.relative_to(tiny)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text("a" * 40)
    (top / "snapshots" / ("b" * 40)).mkdir()
    found = resolve_model(str(top), lambda *_: None)
    assert found.notes and "aaaaaaaa" in found.notes[0]
    assert largest_difference(draw(found.path, request=REQUEST), theirs) <= 1


@pytest.mark.parametrize(
    ("part", "changes"),
    [("vae", {"sample_size": None}), ("unet", {"conv_in_kernel": 5}), ("unet", {"time_embedding_dim": 7})],
)
def test_what_only_a_constructor_or_the_weights_can_judge_is_one_line(
    model: Path, part: str, changes: dict[str, Any]
) -> None:
    edit(model / part / "config.json", **changes)
    with pytest.raises(SdcliError) as caught:
        draw(model, request=REQUEST)
    assert str(model.name) in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_model_of_another_family_is_told_by_its_tensors(model: Path) -> None:
    tensors = load_file(weights(model, "unet"))
    save_file({**tensors, "add_embedding.linear_1.weight": torch.ones(8, 8)}, weights(model, "unet"))
    with pytest.raises(SdcliError, match=r"unexpected tensors: 'add_embedding.*it looks like Stable Diffusion XL"):
        draw(model, request=REQUEST)
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}, weights(model, "unet"))
    with pytest.raises(SdcliError, match=r"lacks the tensors .* and \d+ more: .*a single-file checkpoint"):
        draw(model, request=REQUEST)


@torch.inference_mode()
def test_latents_have_the_factor_of_the_autoencoder_both_ways(tmp_path: Path) -> None:
    model = open_model("m", made(tmp_path / "model", NETWORKS["autoencoder of 3 levels"]))
    with borrow_encoder(model.parts["vae"], borrowing(model.parts["vae"])) as encode:
        mean, _ = encode(torch.zeros(1, 3, 64, 32))
    with borrow_decoder(model.parts["vae"], borrowing(model.parts["vae"])) as decode:
        assert mean.shape == (1, 4, 16, 8) and decode(mean).shape == (1, 3, 64, 32)
