"""A vocabulary for models that know no words: byte-level pairs laid out as CLIP's, of any size."""

from __future__ import annotations

import json
from itertools import islice

from sdcli.families.byte_pairs import byte_alphabet, pairs


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
    alphabet = list(byte_alphabet())
    entries = alphabet + [letter + "</w>" for letter in alphabet]
    room = max(0, vocab_size - len(entries) - 2)
    joined = islice(((left, right + end) for left, right in pairs() for end in ("", "</w>")), room)
    merges = []
    for left, right in joined:
        merges.append(f"{left} {right}")
        entries.append(left + right)
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(entries)}, merges
