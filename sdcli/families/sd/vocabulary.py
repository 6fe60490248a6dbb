"""A vocabulary for models that know no words: byte-level pairs laid out as CLIP's, of any size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, product
from string import ascii_lowercase


def written_vocabulary(vocab_size: int) -> dict[str, str]:
    """The files of a tokenizer of so many entries, by name."""
    vocabulary, merges = tokenizer_files(vocab_size)
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


def tokenizer_files(vocab_size: int) -> tuple[dict[str, int], list[str]]:
    """A byte-level BPE vocabulary laid out as CLIP's: 256 bytes, 256 bytes that end a word, merges, two marks.

    The merges join the commonest shape of words, lower-case letters, in twos, threes and fours, so that any
    text can be tokenized and the vocabulary has exactly `vocab_size` entries.
    """
    alphabet = list(_byte_alphabet())
    entries = alphabet + [letter + "</w>" for letter in alphabet]
    room = vocab_size - len(entries) - 2
    merges: list[str] = []
    for left, right in chain(_pairs(2), _pairs(3), _pairs(4)):
        for end in ("", "</w>"):
            if len(merges) < room:
                merges.append(f"{left} {right}{end}")
                entries.append(f"{left}{right}{end}")
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(entries)}, merges


def _pairs(length: int) -> Iterator[tuple[str, str]]:
    """Every word of `length` letters as (all but the last, the last)."""
    return (("".join(letters[:-1]), letters[-1]) for letters in product(ascii_lowercase, repeat=length))


def _byte_alphabet() -> Iterator[str]:
    """The 256 visible characters that stand for bytes in GPT-2's byte-level BPE, which CLIP uses."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    yield from map(chr, visible)
    yield from (chr(256 + index) for index in range(256 - len(visible)))
