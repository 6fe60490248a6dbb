"""Stable Diffusion XL, as the worker runs it (Podell et al. 2023, https://arxiv.org/abs/2307.01952).

What it has in common with Stable Diffusion is of that family: the autoencoder, the way through the UNet, prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from sdcli.domain import Component, Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.sd import network as sd
from sdcli.families.sd.denoiser import Denoiser, borrow_unet
from sdcli.families.sd.network import beside, start, try_out
from sdcli.families.sd.text_encoder import Tokens
from sdcli.families.sd.wordings import State, conditionings, tokens_of, weighed
from sdcli.families.sdxl.family import StableDiffusionXL, has_zeros
from sdcli.families.sdxl.text_encoder import Encode, Pool, borrow_first, borrow_second, build_second
from sdcli.weights.borrow import Borrow

Lent = TypeVar("Lent")
Loan = Callable[[], AbstractContextManager[Lent]]

__all__ = ["beside", "build", "decode", "denoise", "encode_image", "encode_prompt", "start", "try_out"]


def build(component: Component) -> nn.Module:
    """The part's module on the meta device."""
    return build_second(component) if component.name == "text_encoder_2" else sd.build(component)


@contextmanager
def encode_prompt(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Words to `tokens`, both encoders' side by side, (2, tokens, channels), and `pooled`, (2, channels).

    The negative prompt is first; without guidance there is the prompt alone. The encoders are borrowed in turn.
    """
    is_zero = request.guided and not request.negative.strip() and has_zeros(model)
    asked = request.guided and not is_zero
    pairs = [
        tokens_of((f"tokenizer{number}", f"text_encoder{number}"), StableDiffusionXL(), model, request, asked, borrow)
        for number in ("", "_2")
    ]
    for first, second in zip(*pairs, strict=True):
        if first.ids.shape != second.ids.shape:
            raise SdcliError(
                f"the two tokenizers in {echo(model.path)} differ in where they cut a prompt: fetch it again"
            )
    borrow_one: Loan[Encode] = partial(borrow_first, model.parts["text_encoder"], request.clip_skip, borrow)
    borrow_other: Loan[tuple[Encode, Pool]]
    borrow_other = partial(borrow_second, model.parts["text_encoder_2"], request.clip_skip, borrow)
    with ExitStack() as told:
        if borrow.dry is not None:  # it is told of loans before it counts
            borrow_one = _at_hand(told.enter_context(borrow_one()))
            borrow_other = _at_hand(told.enter_context(borrow_other()))

        def condition() -> Iterator[dict[str, torch.Tensor]]:
            with borrow_one() as encode:
                words = [_weighed(tokens, request, borrow, encode)[0] for tokens in pairs[0]]
            with borrow_other() as (encode, pool):
                for narrow, tokens in zip(words, pairs[1], strict=True):
                    wide, last = _weighed(tokens, request, borrow, encode)
                    given = {"tokens": torch.cat([narrow, wide], dim=-1), "pooled": pool(last, tokens.ends[:, 0])}
                    yield {name: _after_zeros(value) if is_zero else value for name, value in given.items()}

        yield lambda _: conditionings(request, borrow, condition)


def _at_hand(lent: Lent) -> Loan[Lent]:
    return lambda: nullcontext(lent)


def _weighed(tokens: Tokens, request: Request, borrow: Borrow, encode: Encode) -> tuple[torch.Tensor, torch.Tensor]:
    """Words by their weights, and what the last layer has for the prompts as they are."""
    lasts: list[torch.Tensor] = []

    def words(ids: torch.Tensor) -> torch.Tensor:
        states, last = encode(ids)
        lasts.append(last)
        return states

    return weighed(tokens, request, borrow, words), lasts[0]


def _after_zeros(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(value), value])


@dataclass(frozen=True, slots=True)
class SizedDenoiser(Denoiser):
    """A borrowed UNet that is told of the picture's size, in pixels."""

    sizes: tuple[int, ...]

    def added(self, conditioning: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The whole prompt, and height and width of the original, what was cut off above and left, and of the picture.

        As in diffusers' StableDiffusionXLPipeline._get_add_time_ids.
        """
        pooled = conditioning["pooled"]
        sizes = torch.tensor([self.sizes], device=pooled.device, dtype=torch.float32)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


@contextmanager
def denoise(model: Model, request: Request, borrow: Borrow) -> Iterator[Denoiser]:
    """The UNet: (latents, timestep, conditioning, guidance) to its output."""
    size = request.height, request.width
    with borrow_unet(model.parts["unet"], borrow) as (unet, lent):
        yield SizedDenoiser(unet, lent, borrow, (*size, 0, 0, *size))


@contextmanager
def encode_image(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """As Stable Diffusion's."""
    with sd.encode_image(model, request, never_black(model, borrow)) as run:
        yield run


@contextmanager
def decode(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """As Stable Diffusion's."""
    with sd.decode(model, request, never_black(model, borrow)) as run:
        yield run


def never_black(model: Model, borrow: Borrow) -> Borrow:
    """The same in FP32 where the autoencoder would overflow in FP16, as SDXL's own does: NaN, and black pictures.

    Its config says so (`force_upcast`); BF16 holds as large numbers as FP32.
    """
    overflows = borrow.dtype is torch.float16 and model.parts["vae"].settings.force_upcast
    return replace(borrow, dtype=torch.float32) if overflows else borrow
