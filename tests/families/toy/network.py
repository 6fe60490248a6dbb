"""The toy family as the worker runs it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sdcli.domain import Component, Model, Request
from sdcli.weights import empty
from sdcli.weights.borrow import Borrow
from sdcli.weights.lent import Lent
from tests.families.toy.family import CHANNELS, PATCH

State = dict[str, dict[str, torch.Tensor]]


def words_of(width: int, layers: int) -> nn.Module:
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, width), nn.Tanh())


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))
        return tokens + self.narrow(F.gelu(self.wide(tokens)))


class Painter(nn.Module):
    """One sample's latents, (1, channels, h, w), its words and its size to the noise in them."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.enter, self.leave, self.know = nn.Linear(CHANNELS, width), nn.Linear(width, CHANNELS), nn.Linear(3, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, latents: torch.Tensor, facts: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        tokens = self.enter(latents.flatten(2).transpose(1, 2))
        count, tokens = tokens.shape[1], torch.cat([tokens, words, self.know(facts)[:, None]], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.leave(tokens[:, :count]).transpose(1, 2).view(latents.shape)


def patches_of(width: int, layers: int) -> nn.Module:
    return nn.ModuleDict({"there": nn.Linear(3 * PATCH**2, CHANNELS), "back": nn.Linear(CHANNELS, 3 * PATCH**2)})


KINDS: dict[str, Callable[[int, int], nn.Module]] = {"words": words_of, "painter": Painter, "patches": patches_of}


def build(component: Component) -> nn.Module:
    return empty.build(component, lambda: KINDS[component.name](component.settings.width, component.settings.layers))


@contextmanager
def read_words(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """`words`, and `size`: height and width, by which this family goes as well."""
    prompts = [request.negative, request.prompt][not request.guided :]
    ids = torch.tensor([[*prompt.encode()[:32].ljust(32)] for prompt in prompts])
    size = torch.tensor([[request.height, request.width]] * len(prompts)) / 128
    module = build(model.parts["words"])
    with borrow.weights(module, model.parts["words"]):
        yield lambda _: {"conditioning": {"words": module(ids.to(borrow.device.torch_device)), "size": size}}


@contextmanager
def cut_patches(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    module: Any = build(model.parts["patches"])
    with borrow.weights(module, model.parts["patches"]):

        def run(state: State) -> State:
            rgb = state["pixels"]["rgb"].to(borrow.device.torch_device, borrow.dtype)
            squares = F.pixel_unshuffle(rgb, PATCH).permute(0, 2, 3, 1)
            return {"init": {"latents": module["there"](squares).permute(0, 3, 1, 2).float()}}

        yield run


def start(model: Model, init: Mapping[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
    return init["latents"]


@dataclass
class Painting:
    module: nn.Module
    lent: Lent
    borrow: Borrow

    def __call__(self, latents: torch.Tensor, time: torch.Tensor, given: Any, guidance: float = 1.0) -> torch.Tensor:
        told = []
        for one, words, size in zip(latents, given["words"], given["size"], strict=True):  # a sample has its own bits
            facts = torch.cat([size.to(words), time.reshape(1).to(words) / 1000])
            told.append(self.module(one[None].to(words), facts[None], words[None]))
            self.borrow.between("block")
        return torch.cat(told).float().to("cpu")


@contextmanager
def paint(model: Model, request: Request, borrow: Borrow) -> Iterator[Painting]:
    module = build(model.parts["painter"])
    with borrow.weights(module, model.parts["painter"]) as lent, borrow.device.repeating():
        yield Painting(module, lent, borrow)


@contextmanager
def put_together(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    module: Any = build(model.parts["patches"])
    with borrow.weights(module, model.parts["patches"]):
        yield (
            lambda latents: (
                F.pixel_shuffle(
                    module["back"](latents.to(borrow.device.torch_device, borrow.dtype).permute(0, 2, 3, 1)).permute(
                        0, 3, 1, 2
                    ),
                    PATCH,
                )
                .float()
                .tanh()
            )
        )


def try_out() -> None: ...
