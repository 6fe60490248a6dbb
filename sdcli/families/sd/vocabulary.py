"""A vocabulary for models that know no words: byte-level pairs laid out as CLIP's, of any size."""

from __future__ import annotations

import json

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
    room = vocab_size - len(entries) - 2
    merges: list[str] = []
    for left, right in pairs():
        for end in ("", "</w>"):
            if len(merges) < room:
                merges.append(f"{left} {right}{end}")
                entries.append(f"{left}{right}{end}")
    entries += ["<|startoftext|>", "<|endoftext|>"]
    return {entry: index for index, entry in enumerate(entries)}, merges
