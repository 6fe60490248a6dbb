"""Qwen3 as a text encoder (https://arxiv.org/abs/2505.09388): a prompt's tokens to states of its layers.

Only the layers whose states are used are there. A weight at a time is read, where it lies or some rows of it cast, and
the table of words is looked up in the file. Each prompt is computed alone, so that its states do not depend on others;
all of them go through a layer before the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sdcli.blocks.gated import Gated
from sdcli.blocks.rms import rms_norm
from sdcli.domain import Component
from sdcli.errors import SdcliError, echo
from sdcli.families.qwen3.parts import cut_after
from sdcli.families.qwen3.schema import TextEncoder
from sdcli.families.qwen3.tokens import Tokens
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build
from sdcli.weights.sliced import product

Encode = Callable[[Sequence[Tokens]], list[torch.Tensor]]
"""From prompts to the states of each, (layers that were asked for, tokens, channels)."""


class Attention(nn.Module):
    """The weights of attention in which several queries share a key (Ainslie et al. 2023)."""

    def __init__(self, settings: TextEncoder) -> None:
        super().__init__()
        width, head = settings.hidden_size, settings.head_dim
        queries, keys = settings.num_attention_heads * head, settings.num_key_value_heads * head
        self.q_proj = nn.Linear(width, queries, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, keys, bias=False)
        self.o_proj = nn.Linear(queries, width, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(head), nn.RMSNorm(head)


class FeedForward(nn.Module):
    """The weights of a gated feed-forward."""

    def __init__(self, settings: TextEncoder) -> None:
        super().__init__()
        width, hidden = settings.hidden_size, settings.intermediate_size
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)


class Layer(nn.Module):
    """The weights of a layer."""

    def __init__(self, settings: TextEncoder) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(settings), FeedForward(settings)
        self.input_layernorm = nn.RMSNorm(settings.hidden_size)
        self.post_attention_layernorm = nn.RMSNorm(settings.hidden_size)


class Qwen3(nn.Module):
    """The weights, by transformers' names. A whole one `ends` with a norm."""

    def __init__(self, settings: TextEncoder, ends: bool = True) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_hidden_layers))
        if ends:
            self.norm = nn.RMSNorm(settings.hidden_size)


def build_text_encoder(component: Component, ends: bool = True) -> Qwen3:
    """On the meta device."""
    settings = component.settings if component.schema else TextEncoder(**component.config)
    return build(component, lambda: Qwen3(settings, ends))


@contextmanager
def borrow_text_encoder(component: Component, wanted: Sequence[int], borrow: Borrow) -> Iterator[Encode]:
    """Lend the encoder, which gives the states after so many layers each, 0 being the words themselves."""
    part = cut_after(component, max(wanted))
    model = build_text_encoder(part, ends=False)
    with borrow.weights(model, part, sliced=nn.Linear):

        def encode(prompts: Sequence[Tokens]) -> list[torch.Tensor]:
            if any(int(prompt.ids.max()) >= part.settings.vocab_size for prompt in prompts):
                raise SdcliError(
                    f"the tokenizer knows more words than the text encoder in {echo(component.folder)}:"
                    " they are of two models; fetch both again"
                )
            return [torch.stack(states) for states in _states(model, part.settings, prompts, wanted, borrow)]

        yield encode


def _states(
    model: Any, settings: TextEncoder, prompts: Sequence[Tokens], wanted: Sequence[int], borrow: Borrow
) -> list[list[torch.Tensor]]:
    device = borrow.device.torch_device
    each = [model.embed_tokens(prompt.ids.to(device)).to(borrow.dtype) for prompt in prompts]
    kept = [[states.clone()] if 0 in wanted else [] for states in each]
    turns = [turn.to(device, borrow.dtype) for turn in _turns(settings, max(len(states) for states in each))]
    masks = [_mask(prompt, device) for prompt in prompts]
    for number, layer in enumerate(model.layers, 1):
        for states, mask, asked in zip(each, masks, kept, strict=True):
            _attend(layer, settings, states, turns, mask)
            normed = rms_norm(states, layer.post_attention_layernorm.weight, settings.rms_norm_eps)
            mlp = layer.mlp
            states.add_(Gated(mlp.gate_proj, mlp.up_proj, mlp.down_proj, settings.intermediate_size)(normed))
            if number in wanted:
                asked.append(states.clone())
        borrow.between("block")
    return kept


def _mask(prompt: Tokens, device: torch.device) -> torch.Tensor:
    """(tokens, tokens): each sees itself and those before it, and none the padding but itself."""
    tokens = len(prompt.ids)
    mask = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
    mask[:, prompt.length :] = False
    return mask


def _turns(settings: TextEncoder, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of rotary positions, (tokens, head size / 2) each, in FP32 (Su et al. 2021)."""
    steps = torch.arange(0, settings.head_dim, 2, dtype=torch.float32) / settings.head_dim
    angles = torch.outer(torch.arange(tokens, dtype=torch.float32), 1.0 / settings.rope_theta**steps)
    return angles.cos(), angles.sin()


def _turned(heads: torch.Tensor, turns: Sequence[torch.Tensor]) -> torch.Tensor:
    """(tokens, heads, size): each number of the first half is paired with one of the second."""
    cos, sin = (turn[: len(heads), None] for turn in turns)
    one, other = heads.chunk(2, dim=-1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)


def _attend(
    layer: Any, settings: TextEncoder, states: torch.Tensor, turns: Sequence[torch.Tensor], mask: torch.Tensor
) -> None:
    """states + attention(norm(states)), in their place: (tokens, channels)."""
    attention, eps, head = layer.self_attn, settings.rms_norm_eps, settings.head_dim
    normed = rms_norm(states, layer.input_layernorm.weight, eps)
    query = product(normed, attention.q_proj).unflatten(1, (-1, head))
    key = product(normed, attention.k_proj).unflatten(1, (-1, head))
    value = product(normed, attention.v_proj).unflatten(1, (-1, head))
    query = _turned(rms_norm(query, attention.q_norm.weight, eps), turns)
    key = _turned(rms_norm(key, attention.k_norm.weight, eps), turns)
    share = settings.num_attention_heads // settings.num_key_value_heads
    for group in range(settings.num_key_value_heads):
        some = slice(group * share, (group + 1) * share)
        keys, values = (one[None, None, :, group].expand(-1, share, -1, -1) for one in (key, value))
        queries = query[None, :, some].transpose(1, 2)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        query[:, some] = mixed[0].transpose(0, 1)
    states += product(query.flatten(1), attention.o_proj)
