"""Stable Diffusion in one file: which networks it has, and what they are, told from names and shapes alone.

A file of the original layout brings no config. Widths, levels and depths are those of its tensors; what no tensor tells
(heads, the scheduler, the tokenizer) is what all models of the kind have.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdcli.domain import Component, Prediction, WeightFile
from sdcli.families.contract import PREDICTIONS, Found, Numbers
from sdcli.families.sd import original
from sdcli.families.sd.parts import TEXT_ENCODER, TOKENIZER, UNET, VAE
from sdcli.families.single_file import Names, Piece, Search, Shapes, as_they_are, levels_of, networks_in
from sdcli.families.tiny.single import TINY_SEARCH

_OF_SDXL = re.compile(r"label_emb\.|add_embedding\.")
"""Names that a denoiser of Stable Diffusion has not."""

CLIP_FOLDER = Path(__file__).parent / "clip"
"""CLIP's byte-pair vocabulary (https://github.com/mlfoundations/open_clip, MIT)."""

_MARKS = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}

BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "clip_sample": False,
    "steps_offset": 1,
}
"""The noise that all of them were trained with."""

HEADS, HEAD_CHANNELS = 8, 64
"""Of Stable Diffusion 1.x so many heads, whatever the width; of 2.x heads of so many channels."""

OPEN_CLIP_WIDTH = 1024
"""Of the text encoder of Stable Diffusion 2.x, OpenCLIP's ViT-H."""

V_DEVIATION = 0.09
"""A model of Stable Diffusion 2 that predicts v has a last norm whose offsets deviate by more than this, as ComfyUI
found by looking at published ones: no tensor's name tells."""

OTHER: Mapping[Prediction, Prediction] = {"epsilon": "v", "v": "epsilon", "sample": "epsilon"}

_LAST_NORM = "up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias"


def parts_of(file: WeightFile, numbers: Numbers, prediction: Prediction | None) -> Found:
    """The parts that a file has, in either layout. Raises SdcliError for types that are not read."""
    found = networks_in(file, (UNET_SEARCH, TEXT_SEARCH, VAE_SEARCH, TINY_SEARCH))
    notes: list[str] = []
    if any(map(_OF_SDXL.match, found["unet"].weights() if "unet" in found else ())):
        del found["unet"]
    if "unet" in found:
        _add_what_no_tensor_tells(file, found, numbers, prediction, notes)
    return Found(found, tuple(notes))


def _is_unet(names: Iterable[str]) -> bool:
    """Whether a file without prefixes has a UNet, and not a network that has some of its names."""
    return any(name.startswith(("down_blocks.", "input_blocks.")) for name in names)


def _is_another(names: Iterable[str]) -> bool:
    """Whether it may have one of the others."""
    every = [*names]
    return not _is_unet(every) and not any(name.startswith(("vision_model.", "visual.")) for name in every)


def _unet_pieces(names: Names) -> dict[str, Piece]:
    in_original = any(name.startswith("input_blocks.") for name in names)
    return original.unet_names(names) if in_original else as_they_are(names)


def _vae_pieces(names: Names) -> dict[str, Piece]:
    return {VAE.renamed(today): piece for today, piece in original.vae_names(names).items()}


def _text_pieces(names: Names) -> dict[str, Piece]:
    if "token_embedding.weight" in names:
        return original.open_clip_names(names, _open_clip_layers(names))
    return original.clip_names(names)


def _open_clip_layers(names: Names) -> int:
    """All but the last: Stable Diffusion 2.x was trained with what the last but one gives."""
    return max(
        (int(f[1]) for name in names if (f := re.match(r"transformer\.resblocks\.(\d{1,3})\.", name))), default=0
    )


def unet_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    """Of a UNet with one transformer after each block."""
    levels = levels_of(shapes, "down_blocks")
    widths = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels]
    attends = [any(name.startswith(f"down_blocks.{level}.attentions.") for name in shapes) for level in levels]
    home = "mid_block.attentions.0"
    if not any(name.startswith(f"{home}.") for name in shapes):  # as of SSD-1B
        attending = (name for name in shapes if name.endswith(".proj_in.weight"))
        home = next(attending, home).removesuffix(".proj_in.weight")
    is_linear = len(shapes[f"{home}.proj_in.weight"]) == 2
    config: dict[str, Any] = {
        "sample_size": 64,
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels_of(shapes, "down_blocks.0.resnets")),
        "down_block_types": ["CrossAttnDownBlock2D" if attending else "DownBlock2D" for attending in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attending else "UpBlock2D" for attending in reversed(attends)],
        "cross_attention_dim": shapes[f"{home}.transformer_blocks.0.attn2.to_k.weight"][1],
        "attention_head_dim": [max(1, width // HEAD_CHANNELS) for width in widths] if is_linear else HEADS,
        "use_linear_projection": is_linear,
    }
    if "time_embedding.cond_proj.weight" in shapes:
        config["time_cond_proj_dim"] = shapes["time_embedding.cond_proj.weight"][1]
    return config


def vae_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    """Of an autoencoder; its scale is the library's default, since no tensor tells."""
    levels = levels_of(shapes, "encoder.down_blocks")
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "block_out_channels": [shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels],
        "layers_per_block": len(levels_of(shapes, "encoder.down_blocks.0.resnets")),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": 512,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def text_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    """Of CLIP's text encoder, or of OpenCLIP's."""
    words, width = shapes["embeddings.token_embedding.weight"]
    is_open_clip = "token_embedding.weight" in names or width == OPEN_CLIP_WIDTH
    layers = len(levels_of(shapes, "encoder.layers"))
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_CHANNELS),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
        "hidden_act": "gelu" if is_open_clip else "quick_gelu",
    }


UNET_SEARCH = Search(
    UNET,
    re.compile(r"input_blocks\.0\.0\.weight|conv_in\.weight"),
    ("model.diffusion_model.", "model_ema.diffusion_model", ""),
    _unet_pieces,
    unet_config,
    _is_unet,
    lambda prefix, name: original.with_dots(name) if prefix.startswith("model_ema.") else name,
)
TEXT_SIGN = re.compile(r"(text_model\.)?embeddings\.token_embedding\.weight|token_embedding\.weight")
TEXT_SEARCH = Search(
    TEXT_ENCODER,
    TEXT_SIGN,
    ("cond_stage_model.transformer.", "cond_stage_model.model.", ""),
    _text_pieces,
    text_config,
    _is_another,
)
VAE_SEARCH = Search(
    VAE, re.compile(r"decoder\.conv_in\.weight"), ("first_stage_model.", ""), _vae_pieces, vae_config, _is_another
)


def _add_what_no_tensor_tells(
    file: WeightFile,
    found: dict[str, Component],
    numbers: Numbers,
    prediction: Prediction | None,
    notes: list[str],
) -> None:
    """The tokenizer and the scheduler, and whether the model predicts noise or v; what was assumed is said."""
    is_second = found["unet"].config["use_linear_projection"]
    found["tokenizer"] = tokenizer("!" if is_second else "<|endoftext|>")
    told, why = _prediction(file, found["unet"], numbers)
    predicts = prediction or told
    if prediction is None:
        notes.append(f"{predicts}-prediction {why}; if it draws noise, give --prediction {OTHER[predicts]}")
    settings: dict[str, Any] = BETAS | ({"skip_prk_steps": True} if predicts == "epsilon" else {})
    kind = "PNDMScheduler"
    if predicts != "epsilon":
        kind, settings = "DDIMScheduler", settings | {"prediction_type": PREDICTIONS[predicts]}
        if is_second and predicts == "v":
            found["unet"].config.update(sample_size=96, upcast_attention=True)
    if "ztsnr" in file.tensors:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if "time_cond_proj_dim" in found["unet"].config:
        kind, settings = "LCMScheduler", BETAS | {"original_inference_steps": 50}
    found["scheduler"] = Component("scheduler", kind, settings, file.path, config_name="")


def tokenizer(pad: str) -> Component:
    """CLIP's, that fills chunks with this token."""
    marks = {**_MARKS, "pad_token": pad, "model_max_length": 77}
    return Component(
        "tokenizer", "CLIPTokenizer", marks, CLIP_FOLDER, config_name=TOKENIZER.config_file, schema=TOKENIZER.schema
    )


def told_prediction(file: WeightFile) -> tuple[Prediction, str] | None:
    """What the denoiser predicts, as far as the file says so, and how."""
    said = [file.notes.get(key, "").lower() for key in ("modelspec.prediction_type", "modelspec.architecture")]
    if "v_pred" in file.tensors:
        return "v", "by its key v_pred"
    if re.search(r"(?i)1[ _-]?step.*x0(?![a-z0-9])", file.path.stem):  # as SDXL-Lightning's of one step
        return "sample", "by its name"
    if any(re.search(r"^v$|v[_-]pred|768-v", one) for one in said):
        return "v", "by what the file says"
    if said[0] == "epsilon":
        return "epsilon", "by what the file says"
    return None


def _prediction(file: WeightFile, unet: Component, numbers: Numbers) -> tuple[Prediction, str]:
    """What the denoiser predicts, as far as the file tells, and how it tells."""
    told = told_prediction(file)
    if told is not None:
        return told
    origin = unet.weights().get(_LAST_NORM)
    if not unet.config["use_linear_projection"]:
        return "epsilon", "assumed, as nearly all of Stable Diffusion 1.x"
    offsets = numbers(file, origin.stored) if origin is not None else []
    mean = math.fsum(offsets) / max(1, len(offsets))
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in offsets) / max(1, len(offsets)))
    predicts: Prediction = "v" if deviation > V_DEVIATION else "epsilon"
    return predicts, f"assumed by its last norm, whose offsets deviate by {deviation:.2f}"
