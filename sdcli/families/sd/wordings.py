"""What prompts say from step to step, from words to what the denoiser goes by: of any family with CLIP's encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from sdcli.domain import Model, Request
from sdcli.families.emphasis import emphasised
from sdcli.families.prompts import turns_of
from sdcli.families.sd.family import StableDiffusion
from sdcli.families.sd.text_encoder import Tokens, own_words, tokenize_all
from sdcli.weights.borrow import Borrow

State = dict[str, dict[str, torch.Tensor]]


def tokens_of(
    parts: tuple[str, str], family: StableDiffusion, model: Model, request: Request, negative: bool, borrow: Borrow
) -> list[Tokens]:
    """The tokens of each different pair of negative prompt and prompt, or of its prompt alone.

    For the encoder and by the tokenizer that `parts` are. What is left out of a prompt is a notice. A dry run has one
    pair, as long as any may be.
    """
    turns, length = turns_of(request), family.geometry(model).prompt_tokens
    if borrow.dry is not None:
        return [Tokens.dry(1 + negative, family.chunks(model, request), length, turns.weighted)]
    encoder, tokenizer = (model.parts[name] for name in parts)
    tokens = tokenize_all(tokenizer, length, [pair[not negative :] for pair in turns.pairs], own_words(encoder))
    kinds = ("negative prompt", "prompt")[not negative :]
    for kind, *dropped in zip(kinds, *(one.dropped for one in tokens), strict=True):
        notice = f"the {kind} is too long: its last {max(dropped)} tokens are left out"
        if any(dropped) and notice not in borrow.notices:
            borrow.notices.append(notice)
    return tokens


def weighed(
    tokens: Tokens, request: Request, borrow: Borrow, encode: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What an encoder says of prompts, by the weights of their words."""
    states = encode(tokens.ids)
    if bool((tokens.weights == 1).all()):
        return states
    if borrow.dry is not None:  # what `emphasised` has at once: some of its operations have no kernel for shapes
        _full = [torch.empty(states.shape, dtype=torch.float32, device=states.device) for _ in range(3)]
        return torch.empty_like(states)
    empty = encode(tokens.empty[None, None])[0] if request.emphasis == "comfy" else None
    parted = states.unflatten(1, tokens.ids.shape[1:])
    return emphasised(parted, tokens.weights, request.emphasis, empty).flatten(1, 2)


def conditionings(
    request: Request, borrow: Borrow, condition: Callable[[], Iterable[Mapping[str, torch.Tensor]]]
) -> State:
    """What the denoiser goes by, and which of several each step has (engine/denoise.py, `conditioning_at`).

    `condition` gives that of each pair of prompts; in a dry run of one, as are all.
    """
    turns = turns_of(request)
    given = [*condition()]
    if borrow.dry is not None:
        given += [{name: torch.empty_like(one) for name, one in given[0].items()} for _ in turns.pairs[1:]]
    if borrow.dry is not None and len(given) > 1:
        [*condition()]  # while the others are there
    encoded = {f"conditioning {number}" if number else "conditioning": dict(one) for number, one in enumerate(given)}
    return encoded | ({"turns": {"order": torch.tensor(turns.order)}} if turns.order else {})
