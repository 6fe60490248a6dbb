"""SDXL's text encoders, borrowed: words as the last layer but one has them, without a norm (Podell et al. 2023).

The second one is OpenCLIP's ViT-bigG, which also gives one vector of the whole prompt (Ilharco et al. 2021,
https://github.com/mlfoundations/open_clip): what the last layer has at the end mark, normed, times a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel

from sdcli.domain import Component
from sdcli.families.sd.family import first_layers
from sdcli.families.sd.text_encoder import borrow_model, build_text_encoder
from sdcli.families.sdxl.family import OWN_LAYER
from sdcli.families.sdxl.parts import PROJECTION
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import without_memory

Encode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Token numbers (prompts, chunks, tokens) to words, (prompts, chunks x tokens, channels), and to what the last layer
has for the first chunk, (prompts, tokens, channels)."""

Pool = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""The latter, and where the end marks are, to one vector a prompt."""


def build_second(component: Component) -> CLIPTextModel:
    """On the meta device: CLIPTextModel, and the matrix that CLIPTextModelWithProjection has beside it."""
    model = build_text_encoder(component)
    with without_memory():
        projection = nn.Linear(model.config.hidden_size, component.settings.projection_dim, bias=False)
    model.add_module(PROJECTION, projection)
    return model


@contextmanager
def borrow_first(component: Component, skip: int | None, borrow: Borrow) -> Iterator[Encode]:
    """Lend the first encoder as far as it is used: to the layer `skip`, counted from its last, 1."""
    layers = component.settings.num_hidden_layers + 1 - (skip or OWN_LAYER)
    component = first_layers(component, layers, ("final_layer_norm.",))
    model = build_text_encoder(component)
    model.final_layer_norm = nn.Identity()
    with borrow_model(model, component, borrow) as run:

        def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            states = run(ids).last_hidden_state.unflatten(0, ids.shape[:2])
            return states.flatten(1, 2), states[:, 0]

        yield encode


@contextmanager
def borrow_second(component: Component, skip: int | None, borrow: Borrow) -> Iterator[tuple[Encode, Pool]]:
    """Lend the second encoder, and what pools its prompts."""
    model = build_second(component)
    heard: list[torch.Tensor] = []

    def hear(module: nn.Module, args: Any, states: torch.Tensor) -> None:
        heard.append(states)

    layer = model.encoder.layers[component.settings.num_hidden_layers - (skip or OWN_LAYER)]
    with borrow_model(model, component, borrow) as run:

        def encode(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            hook = layer.register_forward_hook(hear)
            try:
                last = run(ids).last_hidden_state.unflatten(0, ids.shape[:2])[:, 0]
                return heard.pop().unflatten(0, ids.shape[:2]).flatten(1, 2), last
            finally:
                hook.remove()
                heard.clear()

        def pool(last: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            marks = torch.arange(len(last), device=last.device)
            pooled: torch.Tensor = model.get_submodule(PROJECTION)(last[marks, ends.to(last.device)])
            return pooled

        yield encode, pool
