"""SDXL in one file of the original layout: its networks, told from names and shapes as Stable Diffusion's are.

The text encoders are `conditioner.embedders.0.` and `.1.` (https://github.com/Stability-AI/generative-models), the
second in OpenCLIP's layout, whose last matrix has rows for columns. A test compares with diffusers' own converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sdcli.domain import Component, Prediction, WeightFile
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import PREDICTIONS, Elsewhere, Found, Numbers
from sdcli.families.sd import single
from sdcli.families.sd.original import clip_names, open_clip_names
from sdcli.families.sdxl.family import SIZES
from sdcli.families.sdxl.parts import PROJECTION, SCALING_FACTOR, TEXT_ENCODER_2, TOKENIZER_2, UNET_XL, VAE_XL
from sdcli.families.single_file import Names, Piece, Search, Shapes, levels_of, networks_in
from sdcli.families.tiny.single import TINY_SEARCH

PLAYGROUND = "edm_mean", "edm_std"
"""Playground 2.5's tensors of means and deviations of latents; with them its noise is Karras et al.'s
(https://arxiv.org/abs/2206.00364), as diffusers' and ComfyUI's loaders take it."""

PLAYGROUND_SCALING_FACTOR = 0.5

COSXL = "edm_vpred.sigma_min", "edm_vpred.sigma_max"
"""CosXL's least and highest level of noise: v-prediction of the same kind (https://huggingface.co/stabilityai/cosxl)."""

SIZE_CHANNELS = 256
"""Sines and cosines for each number of the picture's size."""

MOST_NOISE = 1e6
"""A level that no model has: CosXL's highest is 120."""

_FOLDERS = ("text_encoders", "clip")
_SD3 = "Comfy-Org/stable-diffusion-3.5-fp8/text_encoders"
"""Where both of SDXL's text encoders are, each in a file of its own."""

ELSEWHERE = {
    "text_encoder": Elsewhere(
        "clip_l.safetensors", _FOLDERS, ("clip_l*.safetensors",), (f"{_SD3}/clip_l.safetensors",)
    ),
    "text_encoder_2": Elsewhere(
        "clip_g.safetensors", _FOLDERS, ("clip_g*.safetensors",), (f"{_SD3}/clip_g.safetensors",)
    ),
    "vae": Elsewhere(
        "sdxl_vae.safetensors",
        ("vae",),
        ("sdxl_vae*.safetensors", "sdxl-vae*.safetensors", "sdxl.vae*.safetensors"),
        ("stabilityai/sdxl-vae/sdxl_vae.safetensors",),
    ),
}
"""What a file with the denoiser alone lacks."""

MENDED = re.compile(r"(?i)fp16[-_. ]?(vae[-_. ]?)?fix")
"""In names of SDXL's autoencoder as it was mended for FP16 (madebyollin/sdxl-vae-fp16-fix): no tensor tells."""

REFINER = "conditioner.embedders.0.model."
"""Under which the refiner has its only text encoder."""


def parts_of(file: WeightFile, numbers: Numbers, prediction: Prediction | None) -> Found:
    """The parts that a file has; of the refiner no more than an autoencoder. Raises SdcliError for types that are not
    read."""
    searches = (UNET_SEARCH, TEXT_SEARCH, TEXT_2_SEARCH, VAE_XL_SEARCH, TINY_SEARCH)
    return parts_by(searches[-2:] if is_of_refiner(file) else searches, SIZES, file, numbers, prediction)


def is_of_refiner(file: WeightFile) -> bool:
    """Whether the file is SDXL's refiner."""
    return any(name.startswith(REFINER) for name in file.tensors)


def parts_by(
    searches: tuple[Search, ...], sizes: int, file: WeightFile, numbers: Numbers, prediction: Prediction | None
) -> Found:
    """The networks that are searched for, and with the denoiser a scheduler and the tokenizers of the text encoders.

    The denoiser takes so many numbers of the picture's size.
    """
    found = networks_in(file, searches)
    notes: tuple[str, ...] = ()
    if "vae" in found:
        mended = any(map(MENDED.search, _names_of(file)))
        found["vae"].config.update(sample_size=1024, scaling_factor=SCALING_FACTOR, force_upcast=not mended)
        if file.tensors.keys() >= {*PLAYGROUND}:
            mean, deviation = (list(numbers(file, name)) for name in PLAYGROUND)
            found["vae"].config.update(
                scaling_factor=PLAYGROUND_SCALING_FACTOR, latents_mean=mean, latents_std=deviation
            )
    if "unet" in found and "add_embedding.linear_1.weight" not in found["unet"].weights():
        del found["unet"]
    if "unet" in found:
        _tell_sizes(found, sizes)
        found[TOKENIZER_2.name] = replace(single.tokenizer("!"), name=TOKENIZER_2.name)
        if TEXT_SEARCH in searches:
            found["tokenizer"] = single.tokenizer("<|endoftext|>")
        found["scheduler"], notes = _scheduler(file, found["unet"], numbers, prediction)
    return Found(found, notes, elsewhere=ELSEWHERE if "unet" in found else {})


def _names_of(file: WeightFile) -> Iterator[str]:
    """That of the file, those that it says of itself, and that of its repository in the Hub's cache."""
    yield file.path.stem
    yield from (note for key, note in file.notes.items() if key in ("modelspec.title", "ss_vae_name"))
    yield from (part for part in file.path.parts if part.startswith("models--"))


def _tell_sizes(found: Mapping[str, Component], sizes: int) -> None:
    """What the denoiser takes for each of so many numbers: all that is not the whole prompt's."""
    config, second = found["unet"].config, found.get(TEXT_ENCODER_2.name)
    if second is not None:
        rest = config["projection_class_embeddings_input_dim"] - second.config["projection_dim"]
        if rest > 0 and rest % sizes == 0:
            config["addition_time_embed_dim"] = rest // sizes


def _scheduler(
    file: WeightFile, unet: Component, numbers: Numbers, prediction: Prediction | None
) -> tuple[Component, tuple[str, ...]]:
    """That of SDXL's base model; noise of the highest level, or of another kind, where the file says so."""
    other = _other_noise(file, numbers)
    if other is not None:
        kind, settings = other
        settings |= {} if prediction is None else {"prediction_type": PREDICTIONS[prediction]}
        return Component("scheduler", kind, settings, file.path, config_name=""), ()
    told, why = single.told_prediction(file) or ("epsilon", "assumed, as nearly all of SDXL")
    predicts, notes = prediction or told, list[str]()
    if prediction is None:
        notes.append(f"{predicts}-prediction {why}; if it draws noise, give --prediction {single.OTHER[predicts]}")
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "steps_offset")
    betas: dict[str, Any] = {key: single.BETAS[key] for key in kept}
    kind, settings = "EulerDiscreteScheduler", betas | {"timestep_spacing": "leading"}
    settings |= {} if predicts == "epsilon" else {"prediction_type": PREDICTIONS[predicts]}
    if "ztsnr" in file.tensors:
        settings |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if "time_cond_proj_dim" in unet.config:
        kind, settings = "LCMScheduler", single.BETAS | {"original_inference_steps": 50}
    return Component("scheduler", kind, settings, file.path, config_name=""), tuple(notes)


def _other_noise(file: WeightFile, numbers: Numbers) -> tuple[str, dict[str, Any]] | None:
    """The scheduler of a model whose noise goes by levels of its own, and its settings; None for all others."""
    if file.tensors.keys() >= {*PLAYGROUND}:
        levels = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
        return "EDMDPMSolverMultistepScheduler", levels | {"euler_at_final": False, "prediction_type": "epsilon"}
    if file.tensors.keys() >= {*COSXL}:
        ends = [level for name in COSXL for level in numbers(file, name)]
        if len(ends) != len(COSXL) or not 0 < ends[0] < ends[1] < MOST_NOISE:
            raise SdcliError(f"{echo(file.path)} has no levels of noise in {' and '.join(COSXL)}: fetch it again")
        settings = {"sigma_min": ends[0], "sigma_max": ends[1], "sigma_data": 1.0, "sigma_schedule": "exponential"}
        return "EDMEulerScheduler", settings | {"prediction_type": "v_prediction"}
    return None


def _unet_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    config = single.unet_config(shapes, names)
    levels = range(len(config["block_out_channels"]))
    down = [_depth(shapes, f"down_blocks.{level}") for level in levels]
    up = [_depth(shapes, f"up_blocks.{level}") for level in levels]
    if not levels_of(shapes, f"down_blocks.{levels[-1]}.attentions"):  # whose depth is that of the middle
        down[-1] = up[0] = _depth(shapes, "mid_block")
    config |= {
        "sample_size": 128,
        "transformer_layers_per_block": down,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_CHANNELS,
    }
    if up != down[::-1]:
        config["reverse_transformer_layers_per_block"] = up
    if not any(name.startswith("mid_block.attentions.") for name in shapes):
        config["mid_block_type"] = "UNetMidBlock2D" if "mid_block.resnets.0.conv1.weight" in shapes else None
    if "add_embedding.linear_1.weight" in shapes:
        config["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    return config


def _depth(shapes: Shapes, home: str) -> int | list[int]:
    """Layers of a level's transformers: one number where all have as many."""
    transformers = levels_of(shapes, f"{home}.attentions")
    depths = [len(levels_of(shapes, f"{home}.attentions.{n}.transformer_blocks")) for n in transformers]
    return depths if len(set(depths)) > 1 else depths[0] if depths else 1


def _second_pieces(names: Names) -> dict[str, Piece]:
    if "token_embedding.weight" not in names:  # today's, in a file of its own
        return clip_names(names)
    layers = (re.match(r"transformer\.resblocks\.(\d{1,3})\.", name) for name in names)
    pieces = open_clip_names(names, 1 + max((int(layer[1]) for layer in layers if layer), default=-1))
    for stored, turned in ((PROJECTION, True), (f"{PROJECTION}.weight", False)):
        if stored in names:
            pieces[f"{PROJECTION}.weight"] = Piece(stored, turned=turned)
    return pieces


def _second_config(shapes: Shapes, names: Names) -> dict[str, Any]:
    return single.text_config(shapes, names) | {
        "projection_dim": shapes[f"{PROJECTION}.weight"][0],
        "hidden_act": "gelu",
    }


VAE_XL_SEARCH = replace(single.VAE_SEARCH, part=VAE_XL)
UNET_SEARCH = replace(single.UNET_SEARCH, part=UNET_XL, describe=_unet_config)
TEXT_SEARCH = replace(single.TEXT_SEARCH, prefixes=("conditioner.embedders.0.transformer.", ""))
TEXT_2_SEARCH = Search(
    TEXT_ENCODER_2,
    re.compile(rf"{PROJECTION}(\.weight)?"),
    ("conditioner.embedders.1.model.", ""),
    _second_pieces,
    _second_config,
    single.TEXT_SEARCH.is_alone,
)
