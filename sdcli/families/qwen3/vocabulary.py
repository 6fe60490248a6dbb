"""A tokenizer for models that know no words: laid out as Qwen's, of any size."""

from __future__ import annotations

import json
from itertools import islice

from sdcli.families.byte_pairs import byte_alphabet, pairs

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Into which a text is parted before pairs are joined (transformers, Qwen2Tokenizer)."""

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")

ALPHABET = 256


def written_tokenizer(vocab_size: int) -> str:
    """The file tokenizer.json of so many entries: bytes, merges and the marks of Qwen's chat."""
    joined = list(islice(pairs(), vocab_size - ALPHABET - len(MARKS)))
    entries = [*byte_alphabet(), *map("".join, joined)]
    marks = [
        {"id": len(entries) + number, "content": mark, "special": mark.startswith("<|")}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, mark in enumerate(MARKS)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {entry: number for number, entry in enumerate(entries)},
        "merges": [f"{left} {right}" for left, right in joined],
    }
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    parted = {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": marks,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [parted, bytes_]},
        "post_processor": None,
        "decoder": bytes_,
        "model": model,
    }
    return json.dumps(whole, ensure_ascii=False)
