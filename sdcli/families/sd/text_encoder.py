"""The text encoder, borrowed: prompts of any length in chunks of what the encoder can take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from sdcli.domain import Component
from sdcli.errors import SdcliError, echo
from sdcli.families.prompts import Phrase, Wording
from sdcli.families.sd.embeddings import split_at
from sdcli.families.sd.family import CHUNKS_LIMIT
from sdcli.families.sd.parts import VOCABULARY_LIMITS
from sdcli.models.tokenizer_files import check_tokenizer
from sdcli.weights.borrow import Borrow
from sdcli.weights.empty import build
from sdcli.weights.source import numbers_at


@dataclass(frozen=True, slots=True)
class Tokens:
    """Prompts as token numbers, all in the same number of chunks: (prompts, chunks, tokens); and what was left out.

    `weights` are those of the tokens, in the same shape.
    """

    ids: torch.Tensor
    dropped: list[int]
    weights: torch.Tensor
    empty: torch.Tensor
    """A chunk without words, (tokens)."""
    ends: torch.Tensor
    """Where the end mark of each chunk is, (prompts, chunks)."""

    @classmethod
    def dry(cls, prompts: int, chunks: int, length: int, weighted: bool) -> Tokens:
        """Of which the shape alone is of interest, and whether words weigh."""
        ids = torch.zeros(prompts, chunks, length, dtype=torch.long)
        return cls(ids, [], torch.full(ids.shape, 1.0 + weighted), ids[0, 0], ids[..., 0])


Piece = tuple[list[int], float, int]
"""Token numbers that stay together, their weight, and how many chunks end before them."""


def tokenize(
    component: Component, length: int, prompts: Sequence[str], own: Mapping[str, range] | None = None
) -> Tokens:
    """Prompts that are nothing but words, as `tokenize_all` does it."""
    return tokenize_all(component, length, [[(Phrase(prompt),) for prompt in prompts]], own or {})[0]


def tokenize_all(
    component: Component, length: int, groups: Sequence[Sequence[Wording]], own: Mapping[str, range]
) -> list[Tokens]:
    """Split prompts into chunks of `length` tokens, each framed by the begin and end marks and padded.

    Words of one's `own` have token numbers of theirs, which stay together in a chunk. A prompt longer than CHUNKS_LIMIT
    chunks loses its end; `dropped` has the number of tokens lost, a prompt each. Each group has a number of chunks.
    """
    tokenizer = _open_tokenizer(component)
    return [_tokens(tokenizer, length, prompts, own) for prompts in groups]


def _tokens(tokenizer: Any, length: int, prompts: Sequence[Wording], own: Mapping[str, range]) -> Tokens:
    room = length - 2
    parted = [_chunks(_pieces(tokenizer, prompt, own), room) for prompt in prompts]
    count = min(CHUNKS_LIMIT, max(map(len, parted)))
    whole = [_framed(tokenizer, part, room) for chunks in parted for part in [*chunks, *([[]] * count)][:count]]
    framed, weighed, ends = zip(*whole, strict=True)
    shape = len(prompts), count, length
    return Tokens(
        torch.tensor(framed, dtype=torch.long).view(shape),
        [sum(map(len, chunks[count:])) for chunks in parted],
        torch.tensor(weighed).view(shape),
        torch.tensor(_framed(tokenizer, [], room)[0]),
        torch.tensor(ends).view(shape[:2]),
    )


def _framed(tokenizer: Any, part: list[tuple[int, float]], room: int) -> tuple[list[int], list[float], int]:
    """A chunk's token numbers and weights, with its marks, and where its first end mark is: a prompt may spell one."""
    pad = [(tokenizer.pad_token_id, 1.0)] * (room - len(part))
    marked = [(tokenizer.bos_token_id, 1.0), *part, (tokenizer.eos_token_id, 1.0)]
    end = next(at for at, (number, _) in enumerate(marked) if at and number == tokenizer.eos_token_id)
    if tokenizer.padding_side == "left":
        whole, end = [*pad, *marked], len(pad) + end
    else:
        whole = [*marked, *pad]
    return [number for number, _ in whole], [weight for _, weight in whole], end


def _pieces(tokenizer: Any, prompt: Wording, own: Mapping[str, range]) -> Iterator[Piece]:
    """Those of a prompt."""
    for phrase in prompt:
        breaks = phrase.breaks
        for text, name in split_at(phrase.text, own):
            numbers = [[number] for number in _numbers(tokenizer, text)]
            for piece in numbers if name is None else [*numbers, [*own[name]]]:
                yield piece, phrase.weight, breaks
                breaks = 0


def _numbers(tokenizer: Any, text: str) -> list[int]:
    with _told(tokenizer.name_or_path):
        numbers: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return numbers


def _chunks(pieces: Iterable[Piece], room: int) -> list[list[tuple[int, float]]]:
    chunks: list[list[tuple[int, float]]] = [[]]
    for piece, weight, breaks in pieces:
        chunks += [[] for _ in range(min(breaks, CHUNKS_LIMIT))]
        if len(chunks[-1]) + len(piece) > room:
            chunks.append([])
        chunks[-1] += [(number, weight) for number in piece]
    return chunks


def _open_tokenizer(component: Component) -> Any:
    """As CLIPTokenizer.from_pretrained opens it, from the files and settings that have been checked."""
    files = {part: str(path) for part, path in check_tokenizer(component.folder, VOCABULARY_LIMITS).items()}
    settings = {key: _marked(value) for key, value in component.config.items()}
    with _told(component.folder):
        tokenizer = CLIPTokenizer._from_pretrained(files, str(component.folder), settings, _is_local=True)
        if None in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            raise ValueError("it lacks a mark")
    return tokenizer


@contextmanager
def _told(folder: Path | str) -> Iterator[None]:
    """Whatever the library trips over within, as one line."""
    try:
        yield
    except Exception as error:  # the library raises bare exceptions of many kinds for a damaged file
        raise SdcliError(f"the tokenizer in {echo(folder)} is damaged ({echo(error)}): fetch it again") from error


def _marked(token: object) -> object:
    """A token that is written as a table, as the library knows them; the oldest configs leave the mark out."""
    return {"__type": "AddedToken", **token} if isinstance(token, dict) and "content" in token else token


def text_config(settings: dict[str, Any]) -> CLIPTextConfig:
    """The library's own form of the settings. Marks are the tokenizer's business, and 0 is in every vocabulary."""
    marks = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return CLIPTextConfig(**settings, **marks, attn_implementation="sdpa")


def build_text_encoder(component: Component) -> CLIPTextModel:
    """On the meta device."""
    return build(component, lambda: CLIPTextModel(text_config(component.config)))


def own_words(component: Component) -> dict[str, range]:
    """Token numbers of the words that files brought, by their names: beyond those of the vocabulary."""
    numbers, first = dict[str, range](), component.settings.vocab_size
    for word in component.words:
        numbers[word.name] = range(first, first + word.vectors)
        first += word.vectors
    return numbers


@contextmanager
def _knowing(table: nn.Embedding, component: Component, borrow: Borrow) -> Iterator[None]:
    """The table gives vectors for the words that files brought, too."""
    if not component.words or borrow.dry is not None:
        yield
        return
    first, asked = component.settings.vocab_size, list[torch.Tensor]()
    read = [numbers_at(word.origin).view(word.vectors, -1) for word in component.words]
    vectors = torch.cat(read).to(borrow.device.torch_device, borrow.dtype)

    def before(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        asked[:] = [args[0]]
        return (args[0].masked_fill(args[0] >= first, 0),)

    def after(module: nn.Module, args: Any, rows: torch.Tensor) -> torch.Tensor:
        ours = asked[0] >= first
        rows[ours.to(rows.device)] = vectors[(asked[0][ours] - first).to(rows.device)]
        return rows

    hooks = [table.register_forward_pre_hook(before), table.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def borrow_text_encoder(component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Lend a function from token numbers (prompts, chunks, tokens) to what the denoiser attends to.

    That has shape (prompts, chunks x tokens, channels).
    """
    with borrow_model(build_text_encoder(component), component, borrow) as run:
        yield lambda ids: run(ids).last_hidden_state.unflatten(0, ids.shape[:2]).flatten(1, 2)


@contextmanager
def borrow_model(model: CLIPTextModel, component: Component, borrow: Borrow) -> Iterator[Callable[[torch.Tensor], Any]]:
    """Lend a function from token numbers (prompts, chunks, tokens) to what the model gives for (prompts x chunks, …).

    The weights stream: each is used once.
    """
    with borrow.weights(model, component), _knowing(model.embeddings.token_embedding, component, borrow):
        known = model.config.vocab_size + sum(map(len, own_words(component).values()))

        def run(ids: torch.Tensor) -> Any:
            if ids.max() >= known:
                raise SdcliError(
                    f"the tokenizer knows more words than the text encoder in {echo(component.folder)}:"
                    " they are of two models; fetch both again"
                )
            return model(ids.flatten(0, 1).to(borrow.device.torch_device))

        yield run
