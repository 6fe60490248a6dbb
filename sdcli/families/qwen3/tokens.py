"""Prompts to token numbers, as Qwen's chat has them: byte-level pairs in the frame of a question to be answered.

A tokenizer's own chat template is a program out of somebody's file, so the frame that it comes to is written down here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from sdcli.domain import Component, Model, Request
from sdcli.errors import SdcliError, echo
from sdcli.families.qwen3.parts import TOKENS_LIMIT, VOCABULARY_LIMITS
from sdcli.families.qwen3.vocabulary import PIECES
from sdcli.models.tokenizer_files import check_tokenizer
from sdcli.weights.borrow import Borrow

BEFORE, AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
"""Around a prompt."""

NO_THOUGHTS = "<think>\n\n</think>\n\n"
"""After it, where the model is not to think before it answers."""

PAD = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as token numbers, (tokens,); how many of them are the prompt's and its frame's; what was left out."""

    ids: torch.Tensor
    length: int
    dropped: int


def tokenize(component: Component, prompts: list[str], thinking: bool, padded: bool = False) -> list[Tokens]:
    """Each prompt in its frame, at most TOKENS_LIMIT tokens, the last of which go; `padded` at the end to so many.

    Raises SdcliError for a tokenizer that lacks the frame's marks.
    """
    tokenizer = _open(component)
    pad, made = tokenizer.token_to_id(PAD), []
    for prompt in prompts:
        text = f"{BEFORE}{prompt}{AFTER}{'' if thinking else NO_THOUGHTS}"
        with _told(component):
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        kept = ids[:TOKENS_LIMIT]
        filled = kept + [pad] * (TOKENS_LIMIT - len(kept)) if padded else kept
        made.append(Tokens(torch.tensor(filled, dtype=torch.long), len(kept), len(ids) - len(kept)))
    return made


@contextmanager
def _told(component: Component) -> Iterator[None]:
    """Whatever the library trips over within, as one line."""
    try:
        yield
    except Exception as error:  # the library raises bare exceptions for a damaged file
        raise SdcliError(
            f"the tokenizer in {echo(component.folder)} is damaged ({echo(error)}): fetch it again"
        ) from error


def _open(component: Component) -> Any:
    paths = check_tokenizer(component.folder, VOCABULARY_LIMITS)
    with _told(component):
        tokenizer = _whole(paths["tokenizer_file"]) if "tokenizer_file" in paths else _of_pairs(component, paths)
    for mark in (PAD, "<|im_start|>", "<|im_end|>"):
        if tokenizer.token_to_id(mark) is None:
            raise SdcliError(f"the tokenizer in {echo(component.folder)} lacks the mark {mark}: it is not Qwen's")
    return tokenizer


def tokens_of(
    model: Model, request: Request, borrow: Borrow, length: int, thinking: bool, padded: bool = False
) -> list[Tokens]:
    """Those of the negative prompt, where there is guidance, and of the prompt; in a dry run so many as `length`.

    What is cut off is told.
    """
    prompts = {"negative prompt": request.negative, "prompt": request.prompt}
    if not request.guided:
        del prompts["negative prompt"]
    if borrow.dry is not None:
        return [Tokens(torch.zeros(length, dtype=torch.long), length, 0)] * len(prompts)
    every = tokenize(model.parts["tokenizer"], [*prompts.values()], thinking=thinking, padded=padded)
    for kind, made in zip(prompts, every, strict=True):
        if made.dropped:
            borrow.notices.append(f"the {kind} is too long: its last {made.dropped} tokens are left out")
    return every


def _whole(path: Path) -> Any:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _of_pairs(component: Component, paths: dict[str, Path]) -> Any:
    """As transformers makes it from a vocabulary and merges: the marks come from the settings."""
    tokenizer = Tokenizer(BPE.from_file(str(paths["vocab_file"]), str(paths["merges_file"])))
    tokenizer.normalizer = normalizers.NFC()
    parted = pre_tokenizers.Split(Regex(PIECES), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [parted, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    marks = component.config.get("added_tokens_decoder") or {}
    for number, mark in sorted(marks.items(), key=lambda item: int(item[0])):
        plain = AddedToken(mark["content"], special=bool(mark.get("special")), normalized=False)
        tokenizer.add_special_tokens([plain]) if plain.special else tokenizer.add_tokens([plain])
        if tokenizer.token_to_id(mark["content"]) != int(number):
            raise ValueError(f"its mark {mark['content']} is not number {number}")
    return tokenizer
