"""Models in diffusers layout as the split files that ComfyUI's users have: what sdcli reads, the other way round."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdcli.domain import Component
from sdcli.engine.synthesize import write_model
from tests.originals import Tensors, original_vae

VAE: dict[str, Any] = {"block_out_channels": [32, 32, 64, 64], "norm_num_groups": 32, "sample_size": 1024}
"""A small one with what all have and no tensor tells."""

_KLEIN = {
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_add_out": "txt_attn.proj",
    "attn.to_out.0": "img_attn.proj",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
}


def original_klein(tensors: Tensors) -> Tensors:
    """A denoiser's tensors by Black Forest Labs' names."""
    named: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("single_transformer_blocks."):
            new = name.replace("single_transformer_blocks", "single_blocks").replace("attn.to_qkv_mlp_proj", "linear1")
            new = re.sub(r"attn\.norm_([qk])\.weight", lambda f: f"norm.{_normed(f[1])}.scale", new)
            named[new.replace("attn.to_out", "linear2")] = tensor
            continue
        new = name.replace("transformer_blocks", "double_blocks")
        for ours, theirs in _KLEIN.items():
            new = new.replace(ours, theirs)
        new = re.sub(r"attn\.norm_([qk])\.weight", lambda f: f"img_attn.norm.{_normed(f[1])}.scale", new)
        named[new] = torch.cat(tensor.chunk(2)[::-1]) if name.startswith("norm_out.") else tensor
    for fused, parts in (
        ("img_attn", ("to_q", "to_k", "to_v")),
        ("txt_attn", ("add_q_proj", "add_k_proj", "add_v_proj")),
    ):
        _fuse(
            named,
            rf"(double_blocks\.\d+)\.attn\.{parts[0]}\.weight",
            [f"attn.{one}.weight" for one in parts],
            f"{fused}.qkv.weight",
        )
    return named


def _normed(letter: str) -> str:
    return {"q": "query_norm", "k": "key_norm"}[letter]


def original_z_image(tensors: Tensors) -> Tensors:
    """A denoiser's tensors by the names of Z-Image's makers, and one that nothing uses."""
    named: Tensors = {"norm_final.weight": torch.ones(8)}
    for name, tensor in tensors.items():
        new = name.replace("all_x_embedder.2-1", "x_embedder").replace("all_final_layer.2-1", "final_layer")
        named[new.replace("to_out.0", "out").replace("norm_q", "q_norm").replace("norm_k", "k_norm")] = tensor
    _fuse(
        named, r"(.+)\.attention\.to_q\.weight", [f"attention.to_{one}.weight" for one in "qkv"], "attention.qkv.weight"
    )
    return named


def _fuse(named: Tensors, first: str, parts: list[str], fused: str) -> None:
    for home in [found[1] for name in named if (found := re.fullmatch(first, name))]:
        named[f"{home}.{fused}"] = torch.cat([named.pop(f"{home}.{one}") for one in parts])


def original_flux2_vae(tensors: Tensors) -> Tensors:
    """An autoencoder's: its outermost convolutions belong to its halves."""
    named = {re.sub(r"^quant_conv", "encoder.quant_conv", name): one for name, one in original_vae(tensors).items()}
    return {re.sub(r"^post_quant_conv", "decoder.post_quant_conv", name): one for name, one in named.items()}


def made(config: dict[str, Any], folder: Path) -> Path:
    """A model's folder, with numbers of a seed."""
    folder.mkdir(parents=True)
    for _ in write_model(config, folder):
        pass
    return folder


def tensors_of(model: Path, part: str) -> Tensors:
    """Of a part of a folder."""
    return {name: one for file in sorted((model / part).glob("*.safetensors")) for name, one in load_file(file).items()}


def write(tensors: Tensors, path: Path) -> Path:
    """A file of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in tensors.items()}, path)
    return path


def settings_of(component: Component) -> dict[str, Any]:
    """All of them; lists and tuples are one."""
    settings = asdict(component.settings)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def comfy_tree(
    model: Path,
    home: Path,
    denoiser: str,
    vae: str,
    of_denoiser: Callable[[Tensors], Tensors],
    of_vae: Callable[..., Tensors],
) -> Path:
    """ComfyUI's folders with the model's parts as its users call them; the denoiser's file."""
    write(of_vae(tensors_of(model, "vae")), home / "models" / "vae" / vae)
    text = tensors_of(model, "text_encoder")
    write(text, home / "models" / "text_encoders" / "qwen_3_4b.safetensors")
    shutil.copy(model / "tokenizer" / "tokenizer.json", home / "models" / "text_encoders" / "tokenizer.json")
    return write(of_denoiser(tensors_of(model, "transformer")), home / "models" / "diffusion_models" / denoiser)
