"""diffusers' denoisers of a model's folder as OpenVINO can trace them: latents, a time and states in, a tensor out.

Transformers stay in BF16, as their files have it and from which they are mapped, not read. OpenVINO's patch for 16-bit
weights, the one that optimum-intel uses, traces their layers without working them out: billions of parameters take no
memory but clean pages of their files. What is traced is for the shapes of its example alone.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel, UNet2DConditionModel, ZImageTransformer2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers import transformer_z_image
from openvino.frontend.pytorch import patch_model

from sdcli.units import MIB

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""

Grid = tuple[int, int]
"""Rows and columns of latents."""


def opened(folder: Path, kind: str, grid: Grid, tokens: int) -> torch.nn.Module:
    """The folder's denoiser, of diffusers' class `kind`, for latents of that grid and so many tokens of a prompt."""
    if kind == "Flux2Transformer2DModel":
        return Klein(folder, grid, tokens)
    return ZImage(folder) if kind == "ZImageTransformer2DModel" else UNet(folder)


class UNet(torch.nn.Module):
    """Stable Diffusion's, and SDXL's, which has `added` inputs: pooled states and the six numbers of size and crop."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", dtype=torch.float32).eval()

    def forward(self, sample: Any, timestep: Any, context: Any, *added: Any) -> Any:
        more = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
        return self.unet(sample, timestep, context, added_cond_kwargs=more, return_dict=False)[0]


class Klein(torch.nn.Module):
    """FLUX.2 [klein]'s transformer. The places of patches and tokens are constants."""

    def __init__(self, folder: Path, grid: Grid, tokens: int) -> None:
        super().__init__()
        self.transformer = in_bf16(Flux2Transformer2DModel, folder)
        self.patch_ids = Flux2KleinPipeline._prepare_latent_ids(torch.empty(1, 1, grid[0] // 2, grid[1] // 2))
        self.token_ids = Flux2KleinPipeline._prepare_text_ids(torch.empty(1, tokens, 1))

    def forward(self, patches: Any, timestep: Any, context: Any) -> Any:
        places = (self.patch_ids, self.token_ids)
        return self.transformer(patches, context, timestep, *places, return_dict=False)[0]


class ZImage(torch.nn.Module):
    """Z-Image's transformer, for one picture: OpenVINO has neither complex constants nor padding to a common length."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.transformer = in_bf16(ZImageTransformer2DModel, folder)
        rope = self.transformer.rope_embedder
        turns = rope.precompute_freqs_cis(rope.axes_dims, rope.axes_lens, theta=rope.theta)
        rope.freqs_cis = [torch.view_as_real(axis).flatten(1) for axis in turns]
        for layer in self.transformer.modules():
            if isinstance(layer, Attention):
                layer.set_processor(RealTurns())

    def forward(self, latents: Any, timestep: Any, context: Any) -> Any:
        with patch.object(transformer_z_image, "pad_sequence", lambda sequences, **_: torch.stack(sequences)):
            return self.transformer([latents], timestep, [context], return_dict=False)[0][0]


class RealTurns(transformer_z_image.ZSingleStreamAttnProcessor):
    """Z-Image's attention, given its rotary table in real numbers, each sine behind its cosine."""

    def __call__(self, *given: Any, freqs_cis: Any, **more: Any) -> Any:
        turns = torch.view_as_complex(freqs_cis.unflatten(-1, (-1, 2)))
        return super().__call__(*given, freqs_cis=turns, **more)


def in_bf16(kind: Any, folder: Path) -> Any:
    """A transformer whose weights stay in BF16 while it is traced."""
    give_back_freed_tensors()
    transformer = kind.from_pretrained(folder, subfolder="transformer", dtype=torch.bfloat16).eval()
    patch_model.__make_16bit_traceable(transformer)
    return transformer


def give_back_freed_tensors() -> None:
    """Have glibc map what is 1 MiB and more. Else freed activations of a trace stay in its heap, gigabytes of them."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MIB)
