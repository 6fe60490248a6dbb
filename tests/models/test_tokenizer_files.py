"""Tokenizers are other people's files too: what no tokenizer has is refused before a library parses it."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sdcli.families.sd.parts import VOCABULARY_LIMITS
from sdcli.families.sd.vocabulary import tokenizer_files
from sdcli.models import tokenizer_files as module
from sdcli.models.opened import open_model
from sdcli.units import MIB

Refused = Callable[..., AbstractContextManager[None]]

ENTRIES_LIMIT = VOCABULARY_LIMITS.entries


def check_tokenizer(home: Path) -> dict[str, Path]:
    return module.check_tokenizer(home, VOCABULARY_LIMITS)


@pytest.fixture(scope="module")
def clip() -> dict[str, str]:
    """The files of a tokenizer as large as CLIP's."""
    vocabulary, merges = tokenizer_files(49408)
    lines = ["#version: 0.2", *merges, ""]
    return {"vocab.json": json.dumps(vocabulary, ensure_ascii=False), "merges.txt": "\n".join(lines)}


@pytest.fixture
def home(clip: dict[str, str], tmp_path: Path) -> Path:
    """Its folder."""
    for name, text in clip.items():
        (tmp_path / name).write_text(text, "utf-8")
    return tmp_path


def test_a_tokenizer_as_large_as_clip_s_is_taken_in_every_way_of_writing_it(home: Path) -> None:
    assert set(check_tokenizer(home)) == {"vocab_file", "merges_file"}
    vocabulary, merges = (home / "vocab.json").read_text("utf-8"), (home / "merges.txt").read_text("utf-8")
    (home / "vocab.json").write_text(json.dumps(json.loads(vocabulary), indent=2), "utf-8")
    (home / "merges.txt").write_bytes(merges.replace("\n", "\r\n").encode())
    assert set(check_tokenizer(home)) == {"vocab_file", "merges_file"}
    pairs = [merge.split(" ") for merge in merges.splitlines()[1:]]
    model = {"type": "BPE", "vocab": json.loads(vocabulary), "merges": pairs}
    (home / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": model}, indent=2), "utf-8")
    (home / "vocab.json").write_text("[]", "utf-8")  # is not opened where there is a tokenizer.json
    assert set(check_tokenizer(home)) == {"tokenizer_file"}


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json"])
def test_a_file_of_ten_million_entries_is_refused_without_being_parsed(home: Path, refused: Refused, name: str) -> None:
    entry = b"a b\n" if name == "merges.txt" else b'"a":1,'
    content = b"{" + entry * 10_000_000 + b'"z":1}'
    (home / name).write_bytes(content)
    del content
    tracemalloc.start()
    try:
        with refused(1, name, "is larger than", "fetch it again"):
            check_tokenizer(home)
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
    (home / name).write_bytes(b"{" + entry * (ENTRIES_LIMIT + 1))
    with refused(1, name, f"more than {ENTRIES_LIMIT} entries"):
        check_tokenizer(home)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b" \n [1]", b"null", b"1", b'"text"', b"<html>", b"\x80\x04}\x94.", b"\xff{"]
)
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_what_is_no_table_is_refused(home: Path, refused: Refused, name: str, content: bytes) -> None:
    (home / name).write_bytes(content)
    with refused(1, name, "not a table of tokens", "fetch it again"):
        check_tokenizer(home)


@pytest.mark.parametrize("kept", [0, 1, 10, 20_000, 47_000])
def test_merges_that_end_early_are_missed(home: Path, refused: Refused, kept: int) -> None:
    lines = (home / "merges.txt").read_text("utf-8").splitlines(keepends=True)
    (home / "merges.txt").write_text("".join(lines[:kept]), "utf-8")
    with refused(1, "merges.txt", "lacks", "merges of its vocabulary", "fetch it again"):
        check_tokenizer(home)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [b"[]", b"{", b"{}".ljust(MIB + 1), b"\xff"])
def test_the_files_of_old_are_small_tables_or_refused(home: Path, refused: Refused, name: str, content: bytes) -> None:
    (home / name).write_text("{}", "utf-8")
    assert home / name in check_tokenizer(home).values()
    (home / name).write_bytes(content)
    with refused(1, name):
        check_tokenizer(home)


@pytest.mark.timeout(20)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_pipes_and_folders_are_not_the_files_of_a_tokenizer(model_folder: Path, refused: Refused, name: str) -> None:
    path = model_folder / "tokenizer" / name
    path.unlink()
    os.mkfifo(path)
    with refused(1, "lacks tokenizer/vocab.json and merges.txt"):
        open_model("m", model_folder)
    path.unlink()
    path.mkdir()
    with refused(1, "lacks tokenizer/vocab.json and merges.txt"):
        open_model("m", model_folder)
    os.mkfifo(model_folder / "tokenizer" / "added_tokens.json")
    path.rmdir()
    path.write_text("{}", "utf-8")
    with refused(1, "added_tokens.json", "not a regular file"):
        open_model("m", model_folder)
