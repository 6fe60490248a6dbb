"""The denoiser of FLUX.2 (Black Forest Labs 2025): a transformer whose first blocks keep words and picture apart, and
whose others do not (Esser et al. 2024; parallel blocks as in ViT-22B, Dehghani et al. 2023).

The modules are diffusers' own, and the way through them is here. The residual stream is one tensor, the words before
the picture, and every block writes its output in that place. Beside it lies one more map, of what tokens took from each
other; all else exists for a chunk of tokens, a few heads or some of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel

from sdcli.blocks.attention import BoundedAttention
from sdcli.blocks.gated import Gated
from sdcli.blocks.joint import JointAttention, Stream
from sdcli.weights.sliced import chunks, product

Between = Callable[[Literal["piece", "block"]], None]
"""Called after each group of heads and each chunk of tokens, and after each block."""

LARGEST_HALF = 65504.0
"""FP16's, where it would overflow."""


@dataclass(frozen=True, slots=True)
class Modulation:
    """What the time of a step does to the norms: (numbers,) each, shift, scale and gate by turns."""

    picture: torch.Tensor
    words: torch.Tensor
    single: torch.Tensor
    out: torch.Tensor
    """Scale and shift."""


def modulations(model: Flux2Transformer2DModel, timesteps: torch.Tensor, dtype: torch.dtype) -> list[Modulation]:
    """Those of several steps, whose `timesteps` are between 0 and 1000."""
    embed: Any = model.time_guidance_embed
    time = product(embed.time_proj(timesteps.float()).to(dtype), embed.timestep_embedder.linear_1)
    time = F.silu(product(F.silu(time, inplace=True), embed.timestep_embedder.linear_2), inplace=True)
    layers = (
        model.double_stream_modulation_img.linear,
        model.double_stream_modulation_txt.linear,
        model.single_stream_modulation.linear,
        model.norm_out.linear,
    )
    every = [product(time, layer) for layer in layers]
    return [Modulation(*(each[step] for each in every)) for step in range(len(timesteps))]


class Pass:
    """One pass of one sample through the network."""

    def __init__(
        self, model: Flux2Transformer2DModel, modulation: Modulation, attention: BoundedAttention, between: Between
    ) -> None:
        self._model, self._modulation, self._between = model, modulation, between
        config: Any = model.config
        heads, size, self._eps = config.num_attention_heads, config.attention_head_dim, config.eps
        self._joint = JointAttention(attention, heads, size, lambda: between("piece"))
        self._width, self._hidden = heads * size, int(heads * size * config.mlp_ratio)

    def __call__(self, patches: torch.Tensor, words: torch.Tensor, turns: torch.Tensor, wanted: int) -> torch.Tensor:
        """(tokens, channels) of pictures and (words, numbers) to the model's output for the first `wanted` tokens."""
        model, first = self._model, len(words)
        states = words.new_empty(first + len(patches), self._width)
        states[:first] = product(words, model.context_embedder)
        states[first:] = product(patches, model.x_embedder)
        del words, patches
        for double in model.transformer_blocks:
            self._double(double, states, first, turns)
            self._between("block")
        for single in model.single_transformer_blocks:
            self._single(single, states, turns)
            self._between("block")
        scale, shift = self._modulation.out.chunk(2)
        output = states.new_empty(wanted, self._model.proj_out.out_features)
        for some in chunks(wanted, model.proj_out, first):
            output[some.start - first : some.stop - first] = product(
                self._normed(states, some, shift, scale), model.proj_out
            )
        return output

    def _double(self, block: Any, states: torch.Tensor, first: int, turns: torch.Tensor) -> None:
        """Words and picture attend to each other, then each passes a feed-forward."""
        attn = block.attn
        words, picture = slice(0, first), slice(first, len(states))
        sides = (
            (words, self._modulation.words, attn.to_add_out, block.ff_context),
            (picture, self._modulation.picture, attn.to_out[0], block.ff),
        )
        mods = [modulation.chunk(6) for _, modulation, _, _ in sides]
        streams = (
            Stream(
                words,
                (attn.add_q_proj, 0),
                (attn.add_k_proj, 0),
                (attn.add_v_proj, 0),
                attn.norm_added_q,
                attn.norm_added_k,
                self._by(states, mods[0]),
            ),
            Stream(
                picture,
                (attn.to_q, 0),
                (attn.to_k, 0),
                (attn.to_v, 0),
                attn.norm_q,
                attn.norm_k,
                self._by(states, mods[1]),
            ),
        )
        mixed = self._joint(streams, turns, states)
        for (tokens, _, leave, layers), (_, _, gate, shift, scale, gate_after) in zip(sides, mods, strict=True):
            feed_forward = Gated(
                layers.linear_in, layers.linear_in, layers.linear_out, self._hidden, up_row=self._hidden
            )
            for some in self._chunks(tokens, leave):
                self._add(states, some, gate, product(mixed[some], leave))
                self._add(states, some, gate_after, feed_forward(self._normed(states, some, shift, scale)))
                self._between("piece")

    def _single(self, block: Any, states: torch.Tensor, turns: torch.Tensor) -> None:
        """Attention and feed-forward side by side: rows of one fused product, and columns of another."""
        attn, every = block.attn, slice(0, len(states))
        fused, width = attn.to_qkv_mlp_proj, self._width
        mods = self._modulation.single.chunk(3)
        stream = Stream(
            every,
            (fused, 0),
            (fused, width),
            (fused, 2 * width),
            attn.norm_q,
            attn.norm_k,
            self._by(states, mods),
        )
        mixed = self._joint((stream,), turns, states)
        gate_row = 3 * width
        feed_forward = Gated(
            fused, fused, attn.to_out, self._hidden, gate_row, gate_row + self._hidden, down_column=width
        )
        shift, scale, gate = mods
        for some in self._chunks(every, fused):
            self._add(states, some, gate, feed_forward(self._normed(states, some, shift, scale), mixed[some]))
            self._between("piece")

    def _by(self, states: torch.Tensor, mods: tuple[torch.Tensor, ...]) -> Callable[[slice], torch.Tensor]:
        shift, scale, *_ = mods
        return lambda some: self._normed(states, some, shift, scale)

    def _chunks(self, tokens: slice, layer: Any) -> Iterator[slice]:
        return chunks(tokens.stop - tokens.start, layer, tokens.start)

    def _normed(self, states: torch.Tensor, some: slice, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Layer norm, scaled and shifted by the time."""
        normed = F.layer_norm(states[some], states.shape[1:], eps=self._eps)
        return normed.mul_(1 + scale).add_(shift)

    def _add(self, states: torch.Tensor, some: slice, gate: torch.Tensor, output: torch.Tensor) -> None:
        """Add to the residual stream, in its place."""
        states[some].addcmul_(gate, output)
        if states.dtype is torch.float16:
            states[some].clamp_(-LARGEST_HALF, LARGEST_HALF)
