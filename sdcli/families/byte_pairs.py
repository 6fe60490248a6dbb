"""Vocabularies for models that know no words: byte-level pairs, of any size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product
from string import ascii_lowercase


def pairs() -> Iterator[tuple[str, str]]:
    """The commonest shape of words, lower-case letters, in twos, threes and fours: (all but the last, the last)."""
    return chain(_pairs(2), _pairs(3), _pairs(4))


def _pairs(length: int) -> Iterator[tuple[str, str]]:
    return (("".join(letters[:-1]), letters[-1]) for letters in product(ascii_lowercase, repeat=length))


def byte_alphabet() -> Iterator[str]:
    """The 256 visible characters that stand for bytes in GPT-2's byte-level BPE, which CLIP and Qwen use."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    yield from map(chr, visible)
    yield from (chr(256 + index) for index in range(256 - len(visible)))
