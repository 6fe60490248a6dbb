"""A model in diffusers layout written as one file in the original layout: what sdcli reads, the other way round."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

FIRST: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [32, 64], "attention_head_dim": 8, "norm_num_groups": 32, "sample_size": 64},
    "vae": {"block_out_channels": [32, 32, 32, 64], "norm_num_groups": 32, "sample_size": 512},
    "text_encoder": {"vocab_size": 49408, "num_attention_heads": 1, "hidden_size": 32},
    "scheduler": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
}
"""Small ones with what all of Stable Diffusion 1.x have and no tensor tells."""

SECOND: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [64, 128],
        "attention_head_dim": [1, 2],
        "norm_num_groups": 32,
        "use_linear_projection": True,
        "sample_size": 96,
        "upcast_attention": True,
    },
    "vae": FIRST["vae"],
    "text_encoder": {"vocab_size": 49408, "num_attention_heads": 1, "hidden_size": 32, "hidden_act": "gelu"},
    "tokenizer": {"pad_token": "!"},
    "scheduler": {"prediction_type": "v_prediction"},
}
"""The same of Stable Diffusion 2.x."""

KINDS = {"first": FIRST, "second": SECOND}

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet(tensors: Tensors) -> Tensors:
    """A UNet's tensors by their original names: blocks are numbered in the order of use."""
    layers = len({name.split(".")[3] for name in tensors if name.startswith("down_blocks.0.resnets.")})
    levels = len({name.split(".")[1] for name in tensors if name.startswith("down_blocks.")})
    homes: dict[str, str] = dict(_UNET_ENDS)
    number = 1
    for level in range(levels):
        for layer in range(layers):
            homes[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            homes[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        homes[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for level in range(levels):
        attends = f"up_blocks.{level}.attentions.0.proj_in.weight" in tensors
        for layer in range(layers + 1):
            homes[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{number}.0"
            homes[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        homes[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + attends}.conv"
    homes |= {"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"}
    homes |= {"mid_block.resnets.1": "middle_block.2"}
    named = {}
    for name, tensor in tensors.items():
        home = max((home for home in homes if name.startswith(f"{home}.")), key=len)
        inner = name[len(home) + 1 :]
        if ".resnets." in home:
            inner = re.sub(r"^\w+", lambda found: _RESIDUAL[found[0]], inner)
        named[f"{homes[home]}.{inner}"] = tensor
    return named


def original_vae(tensors: Tensors) -> Tensors:
    """An autoencoder's: its way up is counted from the end, and attention is convolutions of one place."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("decoder.up_blocks.")})
    named = {}
    for name, tensor in tensors.items():
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda f: f"up.{levels - 1 - int(f[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda f: f"up.{levels - 1 - int(f[1])}.upsample", new)
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in new:
            new = new.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            new = re.sub(r"to_([qkv])\b", r"\1", new).replace("to_out.0", "proj_out")
        flat = "attentions.0" in name and tensor.ndim == 2
        named[new] = tensor[:, :, None, None].contiguous() if flat else tensor
    return named


def original_clip(tensors: Tensors) -> Tensors:
    """CLIP's text encoder's, as transformers had them."""
    return {f"transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}


def original_open_clip(tensors: Tensors) -> Tensors:
    """OpenCLIP's: one weight for queries, keys and values, and one layer more than is used."""
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers."))
    named = {
        "model.token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "model.positional_embedding": tensors["embeddings.position_embedding.weight"],
        "model.ln_final.weight": tensors["final_layer_norm.weight"],
        "model.ln_final.bias": tensors["final_layer_norm.bias"],
        "model.text_projection": torch.zeros(len(tensors["final_layer_norm.bias"]), 8),
        "model.logit_scale": torch.ones(()),
    }
    for layer in range(layers + 1):
        home, ours = f"model.transformer.resblocks.{layer}", f"encoder.layers.{min(layer, layers - 1)}"
        for leaf in ("weight", "bias"):
            fused = [tensors[f"{ours}.self_attn.{one}_proj.{leaf}"] for one in "qkv"]
            named[f"{home}.attn.in_proj_{leaf}"] = torch.cat(fused)
            named[f"{home}.attn.out_proj.{leaf}"] = tensors[f"{ours}.self_attn.out_proj.{leaf}"].clone()
            for theirs, today in {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}.items():
                named[f"{home}.{theirs}.{leaf}"] = tensors[f"{ours}.{today}.{leaf}"].clone()
            for theirs, today in {"c_fc": "fc1", "c_proj": "fc2"}.items():
                named[f"{home}.mlp.{theirs}.{leaf}"] = tensors[f"{ours}.mlp.{today}.{leaf}"].clone()
    return named


PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}


def originals(model: Path) -> dict[str, Tensors]:
    """The tensors of each network of a model's folder, by their original names without the network's prefix."""
    read = {part: load_file(next((model / part).glob("*.safetensors"))) for part in PREFIXES}
    is_open_clip = json.loads((model / "text_encoder" / "config.json").read_text("utf-8"))["hidden_act"] == "gelu"
    text = original_open_clip if is_open_clip else original_clip
    return {
        "unet": original_unet(read["unet"]),
        "vae": original_vae(read["vae"]),
        "text_encoder": text(read["text_encoder"]),
    }


def write_single(model: Path, path: Path, metadata: dict[str, str] | None = None, **more: torch.Tensor) -> Path:
    """A model's folder as one file, with other tensors besides."""
    tensors = {PREFIXES[part] + name: one for part, named in originals(model).items() for name, one in named.items()}
    save_file({name: one.contiguous() for name, one in {**tensors, **more}.items()}, path, metadata)
    return path
