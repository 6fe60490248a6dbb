"""Stable Diffusion XL and its refiner, as the worker runs them (Podell et al. 2023, https://arxiv.org/abs/2307.01952).

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
from sdcli.families.sd.autoencoder import from_denoiser
from sdcli.families.sd.denoiser import Denoiser, borrow_unet
from sdcli.families.sd.network import beside, start, try_out
from sdcli.families.sd.text_encoder import Tokens
from sdcli.families.sd.wordings import State, conditionings, tokens_of, weighed
from sdcli.families.sdxl.family import StableDiffusionXL
from sdcli.families.sdxl.parts import SCALING_FACTOR
from sdcli.families.sdxl.text_encoder import Encode, Pool, borrow_first, borrow_second, build_second
from sdcli.families.sdxl_refiner.family import StableDiffusionXLRefiner
from sdcli.families.tiny.parts import TINY
from sdcli.weights.borrow import Borrow

Lent = TypeVar("Lent")
Loan = Callable[[], AbstractContextManager[Lent]]

__all__ = ["beside", "build", "decode", "denoise", "encode_image", "encode_prompt", "start", "try_out"]


FAMILIES = {family.name: family for family in (StableDiffusionXL(), StableDiffusionXLRefiner())}


def family_of(model: Model) -> StableDiffusionXL:
    """Which of the two the model is."""
    return FAMILIES[model.family]


def build(component: Component) -> nn.Module:
    """The part's module on the meta device."""
    return build_second(component) if component.name == "text_encoder_2" else sd.build(component)


@contextmanager
def encode_prompt(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """Words to `tokens`, all encoders' side by side, (2, tokens, channels), and `pooled` and `asked`, (2, channels).

    The negative prompt is first; without guidance there is the prompt alone. Which of the two a row is of says `asked`,
    0 or 1. The encoders are borrowed in turn.
    """
    family = family_of(model)
    is_zero = request.guided and not request.negative.strip() and family.has_zeros(model)
    asked = request.guided and not is_zero
    every = [tokens_of(parts, family, model, request, asked, borrow) for parts in family.encoders.items()]
    for tokens in zip(*every, strict=True):
        if len({one.ids.shape for one in tokens}) > 1:
            raise SdcliError(
                f"the two tokenizers in {echo(model.path)} differ in where they cut a prompt: fetch it again"
            )
    *firsts, (second, wide) = zip((model.parts[name] for name in family.encoders), every, strict=True)
    loans: list[Loan[Encode]] = [partial(borrow_first, part, request.clip_skip, borrow) for part, _ in firsts]
    last_loan: Loan[tuple[Encode, Pool]] = partial(borrow_second, second, request.clip_skip, borrow)
    with ExitStack() as told:
        if borrow.dry is not None:  # it is told of loans before it counts
            loans = [_at_hand(told.enter_context(loan())) for loan in loans]
            last_loan = _at_hand(told.enter_context(last_loan()))

        def condition() -> Iterator[dict[str, torch.Tensor]]:
            narrow = list[list[torch.Tensor]]()
            for loan, (_, tokens_of_one) in zip(loans, firsts, strict=True):
                with loan() as encode:
                    narrow.append([_weighed(tokens, request, borrow, encode)[0] for tokens in tokens_of_one])
            with last_loan() as (encode, pool):
                for number, tokens in enumerate(wide):
                    words, last = _weighed(tokens, request, borrow, encode)
                    words = torch.cat([*(some[number] for some in narrow), words], dim=-1)
                    given = {"tokens": words, "pooled": pool(last, tokens.ends[:, 0])}
                    if is_zero:
                        given = {name: torch.cat([torch.zeros_like(one), one]) for name, one in given.items()}
                    yield given | {"asked": torch.tensor([[0.0], [1.0]][-len(words) - is_zero :], device=words.device)}

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


@dataclass(frozen=True, slots=True)
class SizedDenoiser(Denoiser):
    """A borrowed UNet that is told of sizes besides: numbers with the negative prompt, and with the prompt."""

    numbers: tuple[tuple[float, ...], tuple[float, ...]]

    def added(self, conditioning: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The whole prompt, and the numbers of each row."""
        pooled, asked = conditioning["pooled"], conditioning["asked"]
        negative, positive = (torch.tensor([one], device=pooled.device, dtype=torch.float32) for one in self.numbers)
        return {"text_embeds": pooled, "time_ids": negative + asked * (positive - negative)}


@contextmanager
def denoise(model: Model, request: Request, borrow: Borrow) -> Iterator[Denoiser]:
    """The UNet: (latents, timestep, conditioning, guidance) to its output."""
    with borrow_unet(model.parts["unet"], borrow) as (unet, lent):
        yield SizedDenoiser(unet, lent, borrow, family_of(model).numbers(request))


@contextmanager
def encode_image(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[State], State]]:
    """As Stable Diffusion's."""
    with sd.encode_image(model, request, never_black(model, borrow)) as run:
        yield run


@contextmanager
def decode(model: Model, request: Request, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """As Stable Diffusion's. The tiny autoencoder knows latents as SDXL's denoiser does."""
    vae = model.parts["vae"]
    if TINY.name not in model.parts:
        with sd.decode(model, request, never_black(model, borrow)) as run:
            yield run
        return
    with sd.decode(model, request, borrow) as tiny:
        yield tiny if vae.settings.statistics is None else lambda some: tiny(from_denoiser(vae, some) * SCALING_FACTOR)


def never_black(model: Model, borrow: Borrow) -> Borrow:
    """The same in FP32 where the autoencoder would overflow in FP16, as SDXL's own does: NaN, and black pictures.

    Its config says so (`force_upcast`); BF16 holds as large numbers as FP32.
    """
    overflows = borrow.dtype is torch.float16 and model.parts["vae"].settings.force_upcast
    return replace(borrow, dtype=torch.float32) if overflows else borrow
