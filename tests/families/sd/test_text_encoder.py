"""Prompts become the tokens and the context that transformers makes of them, whatever their length."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.utils import logging as library_logging

from sdcli.domain import Component
from sdcli.errors import SdcliError
from sdcli.families.sd.text_encoder import CHUNKS_LIMIT, borrow_text_encoder, tokenize
from sdcli.models.opened import open_model
from tests.networks import borrowing

LENGTH, ROOM = 77, 75
BEGIN, END = 1998, 1999


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Component:
    return open_model("tiny", tiny).parts["tokenizer"]


@pytest.mark.parametrize(
    "prompt",
    [
        "a photograph of an astronaut riding a horse",
        "",
        "   ",
        "UPPER, lower; (brackets:1.2) [x] don't 1234",
        "ein müdes Füchslein — naïve",
        "🦊 and 👨‍👩‍👧‍👦 and 🏳️‍🌈",
        "שועל אדום قفز",
        "狐が走る",
        "two\nlines\tand\x00more",
        "a <|endoftext|> inside",
    ],
)
def test_short_prompts_have_the_library_s_tokens(tiny: Path, tokenizer: Component, prompt: str) -> None:
    library = CLIPTokenizer.from_pretrained(tiny / "tokenizer", local_files_only=True)
    expected = library(prompt, padding="max_length", max_length=LENGTH)["input_ids"]
    tokens = tokenize(tokenizer, LENGTH, [prompt])
    assert len(expected) == LENGTH, "not a short prompt"
    assert tokens.ids.tolist() == [[expected]] and tokens.dropped == [0]


PLAIN_MARK = {"content": "<|endoftext|>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
ADDED = {**PLAIN_MARK, "content": "<cat>", "special": False, "normalized": False}


@pytest.mark.parametrize(
    "settings",
    [
        {"pad_token": "!"},
        {"pad_token": {"__type": "AddedToken", **PLAIN_MARK}, "eos_token": {"__type": "AddedToken", **PLAIN_MARK}},
        {"extra_special_tokens": {}, "additional_special_tokens": [], "processor_class": "CLIPProcessor"},
        {"extra_special_tokens": ["<cat>", "don"]},
        {"extra_special_tokens": {"cat_token": "<cat>"}},
        {"additional_special_tokens": ["<cat>", {"__type": "AddedToken", **ADDED}]},
        {"added_tokens_decoder": {"1999": {**PLAIN_MARK, "special": True}, "2000": ADDED}},
        {"mask_token": "<cat>", "sep_token": "</s>", "cls_token": "[CLS]"},
        {"split_special_tokens": True},
        {"padding_side": "left", "truncation_side": "left"},
        {"add_prefix_space": True, "do_lower_case": False, "clean_up_tokenization_spaces": True},
        {"add_bos_token": False, "add_eos_token": False, "use_fast": False, "errors": "strict"},
        {"chat_template": "{{ raise_exception('run') }}", "model_max_length": LENGTH, "max_len": 20},
        {"tokenizer_class": "CLIPTokenizerFast", "name_or_path": "x/y", "special_tokens_map_file": "/etc/passwd"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("form", ["vocab and merges", "one file", "with added tokens"])
def test_settings_of_every_version_give_the_library_s_tokens(
    tiny: Path, tmp_path: Path, settings: dict[str, Any], form: str
) -> None:
    home = shutil.copytree(tiny, tmp_path / "model") / "tokenizer"
    if form == "one file":
        library = CLIPTokenizer.from_pretrained(home, local_files_only=True)
        shutil.rmtree(home)
        library.save_pretrained(home)
    if form == "with added tokens":
        (home / "added_tokens.json").write_text('{"<dog>": 2000}', "utf-8")
        (home / "special_tokens_map.json").write_text(json.dumps({"unk_token": PLAIN_MARK, "pad_token": "<dog>"}))
    path = home / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), "utf-8")
    library = CLIPTokenizer.from_pretrained(home, local_files_only=True)
    for prompt in ("a <cat> and a <dog>, don't!", "", "<|endoftext|> a </s>[CLS]"):
        expected = library(prompt, padding="max_length", max_length=LENGTH)["input_ids"]
        assert tokenize(open_model("m", home.parent).parts["tokenizer"], LENGTH, [prompt]).ids.tolist() == [[expected]]


@pytest.mark.parametrize(
    "settings", [{"pad_token": None}, {"bos_token": 7}, {"eos_token": ["a"]}, {"added_tokens_decoder": []}]
)
def test_settings_that_the_library_stumbles_over_are_one_line(tiny: Path, tmp_path: Path, settings: Any) -> None:
    home = shutil.copytree(tiny, tmp_path / "model") / "tokenizer"
    path = home / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), "utf-8")
    with pytest.raises(SdcliError, match=r"is damaged .* fetch it again"):
        tokenize(open_model("m", home.parent).parts["tokenizer"], LENGTH, ["a"])


def words(count: int) -> str:
    """A prompt of exactly so many tokens."""
    return " ".join("abcdefghij"[index % 10] for index in range(count))


@pytest.mark.parametrize(("count", "chunks"), [(0, 1), (1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (600, 8)])
def test_long_prompts_have_as_many_chunks_as_they_need(tokenizer: Component, count: int, chunks: int) -> None:
    tokens = tokenize(tokenizer, LENGTH, ["", words(count)])
    assert tokens.ids.shape == (2, chunks, LENGTH)
    assert tokens.dropped == [0, 0]
    assert (tokens.ids[:, :, 0] == BEGIN).all()
    kept = [token for chunk in tokens.ids[1].tolist() for token in chunk if token not in {BEGIN, END}]
    assert len(kept) == count, "a token was lost or made up between the chunks"
    assert (tokens.ids[0, :, 1:] == END).all(), "the short prompt has the same chunks, empty"


def test_a_chunk_ends_and_pads_with_the_end_mark(tokenizer: Component) -> None:
    first, second = tokenize(tokenizer, LENGTH, [words(77)]).ids[0].tolist()
    assert first[0] == BEGIN and first[-1] == END and END not in first[:-1]
    assert second[0] == BEGIN and second[3:] == [END] * 74 and END not in second[:3]


def test_beyond_the_cap_the_end_is_dropped_and_counted(tokenizer: Component) -> None:
    cap = CHUNKS_LIMIT * ROOM
    tokens = tokenize(tokenizer, LENGTH, [words(cap + 7), words(3)])
    assert tokens.ids.shape == (2, CHUNKS_LIMIT, LENGTH)
    assert tokens.dropped == [7, 0]
    assert torch.equal(tokens.ids[0], tokenize(tokenizer, LENGTH, [words(cap)]).ids[0])
    assert tokenize(tokenizer, LENGTH, [words(cap), words(cap + 1)]).dropped == [0, 1]


def test_another_length_frames_other_chunks(tokenizer: Component) -> None:
    assert tokenize(tokenizer, 12, [words(11)]).ids.shape == (1, 2, 12)


@pytest.mark.parametrize("count", [5, 100])
@torch.no_grad()
def test_the_context_is_the_library_s_last_hidden_state(tiny: Path, tokenizer: Component, count: int) -> None:
    ids = tokenize(tokenizer, LENGTH, ["ugly", words(count)]).ids
    library = CLIPTextModel.from_pretrained(tiny / "text_encoder", dtype=torch.float32).eval()
    chunks = [library(prompt).last_hidden_state for prompt in ids]
    expected = torch.stack([chunk.flatten(0, 1) for chunk in chunks])
    component = open_model("tiny", tiny).parts["text_encoder"]
    with borrow_text_encoder(component, borrowing(component)) as encode:
        context = encode(ids)
    assert context.shape == (2, ids.shape[1] * LENGTH, 32)
    torch.testing.assert_close(context, expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_said_of_marks_that_a_small_vocabulary_does_not_have(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("transformers")  # keeps its messages from the root logger, where caplog listens
    log.addHandler(caplog.handler)
    library_logging.warning_once.cache_clear()
    component = open_model("tiny", tiny).parts["text_encoder"]
    with borrow_text_encoder(component, borrowing(component)):
        log.removeHandler(caplog.handler)
    assert caplog.text == ""


@torch.no_grad()
def test_a_context_in_half_precision_is_close(tiny: Path, tokenizer: Component) -> None:
    ids = tokenize(tokenizer, LENGTH, ["a fox"]).ids
    component, contexts = open_model("tiny", tiny).parts["text_encoder"], []
    for dtype in (torch.float32, torch.bfloat16):
        with borrow_text_encoder(component, borrowing(component, dtype=dtype)) as encode:
            contexts.append(encode(ids))
        assert contexts[-1].dtype == dtype
    full, half = contexts
    assert (half.float() - full).abs().max() < 0.1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("merges.txt", b"garbage\n"),
        ("merges.txt", b"#version: 0.2\na\n"),
        ("merges.txt", b"\xff\xfe\x00"),
        ("vocab.json", b"{}"),
        ("vocab.json", b"[1]"),
        ("vocab.json", b'{"a": '),
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.json", b"\xff"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(tiny: Path, tmp_path: Path, file: str, content: bytes) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    (copy / "tokenizer" / file).write_bytes(content)
    with pytest.raises(
        SdcliError, match=r"tokenizer.* (is damaged|lacks \d+ merges|is not a table) .*fetch it again"
    ) as caught:
        tokenize(open_model("tiny", copy).parts["tokenizer"], LENGTH, ["a fox is here"])
    message = str(caught.value)
    assert message.isprintable() and len(message) < 400


def test_a_tokenizer_that_trips_over_a_word_is_one_line(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny, copy)
    table = {"a": 0, "a</w>": 1, "<|startoftext|>": 2, "<|end|>": 3}
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(table))
    (copy / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = open_model("tiny", copy).parts["tokenizer"]
    assert tokenize(tokenizer, LENGTH, ["a"]).ids.shape == (1, 1, LENGTH)
    with pytest.raises(SdcliError, match=r"is damaged .*not found in the vocabulary.*fetch it again"):
        tokenize(tokenizer, LENGTH, ["a fox"])


@torch.no_grad()
def test_tokens_that_the_encoder_does_not_know_are_refused(tiny: Path) -> None:
    ids = torch.full((1, 1, LENGTH), 2000)
    component = open_model("tiny", tiny).parts["text_encoder"]
    with borrow_text_encoder(component, borrowing(component)) as encode:
        encode(ids - 1)
        with pytest.raises(SdcliError, match="more words than the text encoder"):
            encode(ids)
