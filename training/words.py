"""The tokenizer: byte-level pairs as CLIP's, where every word of our captions is one token and any text is some."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
"""Tokens of a prompt, marks and padding included; the padding is the end mark again, as in CLIP."""

TOKENIZER_CONFIG = {
    "tokenizer_class": "CLIPTokenizer",
    "model_max_length": LENGTH,
    "bos_token": BEGIN,
    "eos_token": END,
    "pad_token": END,
    "unk_token": END,
}


def byte_letters() -> list[str]:
    """A printable letter for each byte, in CLIP's order (GPT-2's bytes_to_unicode)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [letters[byte] for byte in letters]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Merges that make each word one token: byte pair encoding (Sennrich et al. 2016), each word counted once.

    The commonest pair is joined first, the first in the alphabet among equals, until no word has two parts.
    """
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in split for pair in pairwise(parts))
        if not pairs:
            return merges
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        for index, parts in enumerate(split):
            if left in parts and len(parts) > 1:
                split[index] = _joined(parts, left, right)


def _joined(parts: list[str], left: str, right: str) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and joined[-1] == left and part == right:
            joined[-1] = left + right
        else:
            joined.append(part)
    return joined


def write_tokenizer(words: list[str], folder: Path) -> int:
    """Write vocab.json, merges.txt and the config into `folder`; returns the number of tokens.

    As in CLIP: the bytes, the bytes that end a word, the merges, the begin mark, the end mark last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    merges = learn_merges(words)
    letters = byte_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BEGIN, END]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n", "utf-8")
    return len(vocabulary)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer that sdcli will use too."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)


def token_ids(tokenizer: Any, texts: list[str]) -> Any:
    """(texts, LENGTH) token numbers: begin mark, words, end mark, padding; what is too long loses its end."""
    options: dict[str, Any] = {"padding": "max_length", "max_length": LENGTH, "truncation": True}
    return tokenizer(texts, return_tensors="pt", **options)["input_ids"]
