"""The files of a tokenizer, looked at before any library parses them: of the right kind and size."""

from __future__ import annotations

import os
from pathlib import Path

from sdcli.errors import SdcliError, echo
from sdcli.models.configs import read_json
from sdcli.units import MIB, format_size

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either of these is a tokenizer; the first is taken where both are there."""

_LEGACY_FILES = ("special_tokens_map.json", "added_tokens.json")

_LIMITS_BYTES = {"vocab.json": 4 * MIB, "merges.txt": 4 * MIB, "tokenizer.json": 8 * MIB}
"""CLIP's have 1.1, 0.5 and 2.2 MB."""

ENTRIES_LIMIT = 200_000
"""CLIP has 49,408 tokens and 48,894 merges. A library takes some 500 bytes for each."""

_UNMERGED = 514
"""Tokens of CLIP's vocabulary that no merge makes: 256 bytes, as many that end a word, two marks."""

_OWN_TOKENS = 1000
"""Tokens that somebody may have added to a vocabulary without a merge."""


def is_tokenizer(home: Path) -> bool:
    """Whether the files of a tokenizer are in the folder."""
    return any(all((home / name).is_file() for name in names) for names in TOKENIZER_FILES)


def check_tokenizer(home: Path) -> dict[str, Path]:
    """The files that a tokenizer is made from, by the names that transformers has for them.

    Raises SdcliError for a file that is none of a tokenizer, or has more entries than a tokenizer has.
    """
    names = next(names for names in TOKENIZER_FILES if all((home / name).is_file() for name in names))
    contents = {name: _read(home / name) for name in names}
    for name, raw in contents.items():
        entries = raw.count(b"\n" if name == "merges.txt" else b":")
        if entries > ENTRIES_LIMIT:
            raise SdcliError(f"{echo(home / name)} has more than {ENTRIES_LIMIT} entries: refused; fetch it again")
        if name != "merges.txt" and not raw.lstrip().startswith(b"{"):
            raise SdcliError(f"{echo(home / name)} is not a table of tokens: fetch it again")
    if names[-1] == "merges.txt":
        merges = contents["merges.txt"].count(b"\n")
        lacking = contents["vocab.json"].count(b'":') - merges - _UNMERGED
        if lacking > _OWN_TOKENS:
            raise SdcliError(f"{echo(home / 'merges.txt')} lacks {lacking} merges of its vocabulary: fetch it again")
    for name in _LEGACY_FILES:
        if os.path.lexists(home / name):
            read_json(home / name)
    return {_PARTS[name]: home / name for name in (*names, *_LEGACY_FILES) if (home / name).is_file()}


_PARTS = {
    "tokenizer.json": "tokenizer_file",
    "vocab.json": "vocab_file",
    "merges.txt": "merges_file",
    "special_tokens_map.json": "special_tokens_map_file",
    "added_tokens.json": "added_tokens_file",
}


def _read(path: Path) -> bytes:
    limit_bytes = _LIMITS_BYTES[path.name]
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror}; check its permissions") from error
    if len(raw) > limit_bytes:
        raise SdcliError(
            f"{echo(path)} is larger than {format_size(limit_bytes)}: no CLIP tokenizer is; fetch it again"
        )
    return raw
