"""The files of a tokenizer, looked at before any library parses them: of the right kind and size."""

from __future__ import annotations

import os
from pathlib import Path

from sdcli.errors import SdcliError, echo
from sdcli.families.contract import VocabularyLimits
from sdcli.models.configs import read_json
from sdcli.units import format_size

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Either of these is a tokenizer; the first is taken where both are there."""

LEGACY_FILES = ("special_tokens_map.json", "added_tokens.json")

_OWN_TOKENS = 1000
"""Tokens that somebody may have added to a vocabulary without a merge."""


def is_tokenizer(home: Path) -> bool:
    """Whether the files of a tokenizer are in the folder."""
    return any(all((home / name).is_file() for name in names) for names in TOKENIZER_FILES)


def check_tokenizer(home: Path, limits: VocabularyLimits) -> dict[str, Path]:
    """The files that a tokenizer is made from, by the names that transformers has for them.

    Raises SdcliError for a file that is none of a tokenizer, or has more entries than a tokenizer has.
    """
    names = next(names for names in TOKENIZER_FILES if all((home / name).is_file() for name in names))
    contents = {name: _read(home / name, limits) for name in names}
    for name, raw in contents.items():
        entries = raw.count(b"\n" if name == "merges.txt" else b":")
        if entries > limits.entries:
            raise SdcliError(f"{echo(home / name)} has more than {limits.entries} entries: refused; fetch it again")
        if name != "merges.txt" and not raw.lstrip().startswith(b"{"):
            raise SdcliError(f"{echo(home / name)} is not a table of tokens: fetch it again")
    if names[-1] == "merges.txt":
        merges = contents["merges.txt"].count(b"\n")
        lacking = contents["vocab.json"].count(b'":') - merges - limits.unmerged
        if lacking > _OWN_TOKENS:
            raise SdcliError(f"{echo(home / 'merges.txt')} lacks {lacking} merges of its vocabulary: fetch it again")
    for name in LEGACY_FILES:
        if os.path.lexists(home / name):
            read_json(home / name)
    return {_PARTS[name]: home / name for name in (*names, *LEGACY_FILES) if (home / name).is_file()}


_PARTS = {
    "tokenizer.json": "tokenizer_file",
    "vocab.json": "vocab_file",
    "merges.txt": "merges_file",
    "special_tokens_map.json": "special_tokens_map_file",
    "added_tokens.json": "added_tokens_file",
}


def _read(path: Path, limits: VocabularyLimits) -> bytes:
    limit_bytes = limits.limits_bytes[path.name]
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except OSError as error:
        raise SdcliError(f"cannot read {echo(path)}: {error.strerror}; check its permissions") from error
    if len(raw) > limit_bytes:
        raise SdcliError(
            f"{echo(path)} is larger than {format_size(limit_bytes)}: no {limits.title} tokenizer is; fetch it again"
        )
    return raw
