"""The denoiser of Z-Image (https://arxiv.org/abs/2511.22699): picture and words in one stream, each refined before.

The modules are diffusers' own, and the way through them is here. The residual stream is one tensor, the picture before
the words, and every layer writes its output in that place. Beside it lies one more map, of what tokens took from each
other; all else exists for a chunk of tokens, a few heads or some of the hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.gated import Gated
from sdcli.blocks.joint import JointAttention, Stream
from sdcli.weights.sliced import chunks, product

Between = Callable[[Literal["piece", "block"]], None]
"""Called after each group of heads and each chunk of tokens, and after each layer."""

PATCHING = "2-1"
"""The name of the layers for patches of 2 x 2 latents of one picture."""

LONGEST_PERIOD = 10_000.0
"""Of the sines of a time."""


@dataclass(frozen=True, slots=True)
class Modulation:
    """What the time of a step does: to each layer (scale, gate, scale, gate), (numbers,) each, and at last a scale."""

    refiners: list[tuple[torch.Tensor, ...]]
    layers: list[tuple[torch.Tensor, ...]]
    out: torch.Tensor


def modulations(model: ZImageTransformer2DModel, times: torch.Tensor, dtype: torch.dtype) -> list[Modulation]:
    """Those of several steps, whose `times` go from 0 at noise to 1: each alone, with the same bits in any order."""
    first, _, second = model.t_embedder.mlp
    known = [
        product(F.silu(product(each.to(dtype), first), inplace=True), second)
        for each in _sines(times * model.t_scale, model.t_embedder.frequency_embedding_size).split(1)
    ]
    refiners = [[_modulation(layer, each) for each in known] for layer in model.noise_refiner]
    layers = [[_modulation(layer, each) for each in known] for layer in model.layers]
    out = model.all_final_layer[PATCHING].adaLN_modulation[1]
    scales = [product(F.silu(each), out)[0].add_(1) for each in known]
    return [
        Modulation([layer[step] for layer in refiners], [layer[step] for layer in layers], scales[step])
        for step in range(len(known))
    ]


def _modulation(layer: Any, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
    scale, gate, scale_after, gate_after = product(time, layer.adaLN_modulation[0])[0].chunk(4)
    return scale.add_(1), gate.tanh_(), scale_after.add_(1), gate_after.tanh_()


def _sines(times: torch.Tensor, size: int) -> torch.Tensor:
    """(steps, size): cosines and sines of each time at periods up to the longest (TimestepEmbedder)."""
    half = size // 2
    steps = torch.arange(half, dtype=torch.float32, device=times.device)
    angles = times[:, None].float() * torch.exp(-math.log(LONGEST_PERIOD) * steps / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, size % 2))


class Pass:
    """Passes of samples through the network, at one time."""

    def __init__(
        self, model: ZImageTransformer2DModel, modulation: Modulation, attention: BoundedAttention, between: Between
    ) -> None:
        self._model: Any = model
        self._modulation, self._between = modulation, between
        config: Any = model.config
        heads, self._width = config.n_heads, config.dim
        self._joint = JointAttention(attention, heads, self._width // heads, lambda: between("piece"))

    def __call__(self, samples: list[Sample]) -> list[torch.Tensor]:
        """The model's output for each sample's patches, (tokens, numbers). Layer by layer, each read once for all."""
        model = self._model
        each = [self._embedded(sample) for sample in samples]
        for layer, mods in zip(model.noise_refiner, self._modulation.refiners, strict=True):
            for states, sample in zip(each, samples, strict=True):
                self._layer(layer, states[: sample.words_at], sample.turns[: sample.words_at], mods)
            self._between("block")
        for layer, mods in zip(model.layers, self._modulation.layers, strict=True):
            for states, sample in zip(each, samples, strict=True):
                self._layer(layer, states, sample.turns, mods)
            self._between("block")
        return [self._left(states, len(sample.patches)) for states, sample in zip(each, samples, strict=True)]

    def refined(self, words: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Words as tokens, as many as turns, filled up with what was learned for that: whatever the time is."""
        model, states = self._model, words.new_empty(len(turns), self._width)
        norm, enter = model.cap_embedder
        states[: len(words)] = product(norm(words), enter)
        states[len(words) :] = model.cap_pad_token
        for layer in model.context_refiner:
            self._layer(layer, states, turns, None)
            self._between("block")
        return states

    def _embedded(self, sample: Sample) -> torch.Tensor:
        """The picture as tokens, filled up likewise, and the words."""
        patches = sample.patches
        states = patches.new_empty(len(sample.turns), self._width)
        states[: len(patches)] = product(patches, self._model.all_x_embedder[PATCHING])
        states[len(patches) : sample.words_at] = self._model.x_pad_token
        states[sample.words_at :] = sample.words
        return states

    def _layer(
        self, layer: Any, states: torch.Tensor, turns: torch.Tensor, mods: tuple[torch.Tensor, ...] | None
    ) -> None:
        """Attention and a feed-forward, each normed before and after, in the place of `states`."""
        attn, every, feed = layer.attention, slice(0, len(states)), layer.feed_forward
        scale, gate, scale_after, gate_after = (None,) * 4 if mods is None else mods
        stream = Stream(
            every,
            (attn.to_q, 0),
            (attn.to_k, 0),
            (attn.to_v, 0),
            attn.norm_q,
            attn.norm_k,
            lambda some: _scaled(layer.attention_norm1(states[some]), scale),
        )
        mixed = self._joint((stream,), turns, states)
        feed_forward = Gated(feed.w1, feed.w3, feed.w2, feed.w1.out_features)
        leave = attn.to_out[0]
        for some in chunks(len(states), leave):
            piece = states[some]
            piece.add_(_scaled(layer.attention_norm2(product(mixed[some], leave)), gate))
            output = feed_forward(_scaled(layer.ffn_norm1(piece), scale_after))
            piece.add_(_scaled(layer.ffn_norm2(output), gate_after))
            self._between("piece")

    def _left(self, states: torch.Tensor, wanted: int) -> torch.Tensor:
        final = self._model.all_final_layer[PATCHING]
        output = states.new_empty(wanted, final.linear.out_features)
        for some in chunks(wanted, final.linear):
            normed = F.layer_norm(states[some], states.shape[1:], eps=final.norm_final.eps)
            output[some] = product(normed.mul_(self._modulation.out), final.linear)
        return output


@dataclass(frozen=True, slots=True)
class Sample:
    """What goes through the network: (tokens, numbers) of the picture and of the refined words, and the turns of all
    tokens, those that each is filled up with included. The words begin at `words_at`."""

    patches: torch.Tensor
    words: torch.Tensor
    turns: torch.Tensor
    words_at: int


def _scaled(states: torch.Tensor, by: torch.Tensor | None) -> torch.Tensor:
    return states if by is None else states.mul_(by)
