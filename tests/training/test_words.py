"""The tokenizer: whole words of captions, and any text at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from sdcli.families.sd.text_encoder import tokenize
from sdcli.models.opened import open_model
from training.concepts import CALLED, captions_of
from training.glyphs import Glyphs
from training.recipes import Planner, caption_words
from training.words import LENGTH, byte_letters, learn_merges, open_tokenizer, token_ids, write_tokenizer


def test_every_word_of_a_caption_is_one_token(glyphs: Glyphs, tmp_path: Path) -> None:
    words = caption_words(glyphs.names)
    tokens = write_tokenizer(words, tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    assert len(tokenizer) == tokens
    assert [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words] == [1] * len(words)


def test_the_program_sees_the_tokens_that_training_saw(glyphs: Glyphs, model: Path) -> None:
    planner = Planner(glyphs.names)
    captions = planner.captions(planner.draw(50, torch.Generator().manual_seed(0)), random.Random(0))
    trained = token_ids(open_tokenizer(model / "tokenizer"), ["", *captions])
    component = open_model("model", model).parts["tokenizer"]
    used = torch.cat([tokenize(component, LENGTH, [text]).ids[:, 0] for text in ["", *captions]])
    assert torch.equal(trained, used)


@pytest.mark.parametrize("text", ["Füchse & 狐 — №7!", "🦊 on blue", "e=mc²\n\ttabs", "\u200b"])
def test_any_text_has_tokens(glyphs: Glyphs, tmp_path: Path, text: str) -> None:
    tokens = write_tokenizer(caption_words(glyphs.names), tmp_path)
    tokenizer = open_tokenizer(tmp_path)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids and max(ids) < tokens - 2  # none of them is the unknown mark


def test_merges_are_learned_from_the_commonest_pair() -> None:
    assert learn_merges(["aab", "ab"])[0] == ("a", "b</w>")
    assert len(set(byte_letters())) == 256


def test_concepts_have_names_of_their_own() -> None:
    named = [*CALLED, "fox face", "cat", "cat face", "dog", "angry face", "robot face", "sun behind cloud"]
    groups = captions_of(named)
    said = [name for group in groups for name in group]
    assert all(said) and len(said) == len(set(said))
    assert all(word.isascii() and word.isalpha() for name in said for word in name.split())
    assert ["fox", "fox face"] in groups and ["cat face"] in groups and ["angry face"] in groups
    assert {"cat", "dog", "robot", "apple", "tree", "house", "car", "boat", "heart", "star", "sun"} <= set(said)
