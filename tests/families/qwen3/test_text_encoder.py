"""Qwen3's tokens and states are those of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from sdcli.devices.cpu import CpuDevice
from sdcli.domain import Component
from sdcli.errors import SdcliError
from sdcli.families.qwen3.parts import TEXT_ENCODER, TOKENIZER, TOKENS_LIMIT, cut_after
from sdcli.families.qwen3.text_encoder import borrow_text_encoder, build_text_encoder
from sdcli.families.qwen3.tokens import tokenize
from sdcli.families.qwen3.vocabulary import written_tokenizer
from sdcli.models.folder import component_in
from sdcli.weights.borrow import Borrow
from tests import qwen
from tests.networks import borrowing, table

PROMPTS = [
    "a fox in the snow",
    "",
    "UPPER don't 1234",
    "ein müdes Füchslein — naïve",
    "🦊 狐が走る",
    "a\nb  c<|im_end|>d",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/tokenizer.json").write_text(written_tokenizer(600), "utf-8")
    (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(qwen.TOKENIZER), "utf-8")
    torch.manual_seed(5)
    library = Qwen3ForCausalLM(Qwen3Config(**qwen.TEXT_ENCODER))
    for parameter in library.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1)
    library.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def tokenizer(home: Path) -> Component:
    return component_in(home / "tokenizer", TOKENIZER)


@pytest.fixture(scope="module")
def encoder(home: Path) -> Component:
    return component_in(home / "text_encoder", TEXT_ENCODER)


def expected_tokens(home: Path, prompt: str, thinking: bool, padded: bool) -> list[int]:
    library = Qwen2Tokenizer.from_pretrained(home / "tokenizer", local_files_only=True)
    library.chat_template = qwen.TEMPLATE
    messages = [{"role": "user", "content": prompt}]
    text = library.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    options: dict[str, Any] = {"padding": "max_length"} if padded else {}
    ids: list[int] = library(text, max_length=TOKENS_LIMIT, truncation=True, **options)["input_ids"]
    return ids


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("prompt", [*PROMPTS, "abc " * 300])
def test_a_prompt_has_the_tokens_of_the_published_template(
    home: Path, tokenizer: Component, prompt: str, thinking: bool
) -> None:
    for padded in (False, True):
        (tokens,) = tokenize(tokenizer, [prompt], thinking, padded)
        assert tokens.ids.tolist() == expected_tokens(home, prompt, thinking, padded)
        assert tokens.length == len(expected_tokens(home, prompt, thinking, padded=False))


def test_a_vocabulary_with_merges_is_as_one_file(home: Path, tmp_path: Path) -> None:
    whole = json.loads((home / "tokenizer/tokenizer.json").read_text("utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]), "utf-8")
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *whole["model"]["merges"], ""]), "utf-8")
    marks = {
        str(mark["id"]): {"content": mark["content"], "special": mark["special"]} for mark in whole["added_tokens"]
    }
    table = {**qwen.TOKENIZER, "added_tokens_decoder": marks}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(table), "utf-8")
    parted, one = component_in(tmp_path, TOKENIZER), component_in(home / "tokenizer", TOKENIZER)
    for prompt in PROMPTS:
        assert tokenize(parted, [prompt], True)[0].ids.tolist() == tokenize(one, [prompt], True)[0].ids.tolist()


def test_what_is_beyond_the_limit_is_counted(tokenizer: Component) -> None:
    frame = tokenize(tokenizer, [""], True)[0].length
    (tokens,) = tokenize(tokenizer, ["1" * (TOKENS_LIMIT + 5)], True)
    assert (tokens.length, tokens.dropped) == (TOKENS_LIMIT, frame + 5)


@pytest.mark.parametrize("mark", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
def test_a_tokenizer_of_another_model_is_refused(home: Path, tmp_path: Path, mark: str) -> None:
    copy = shutil.copytree(home / "tokenizer", tmp_path / "tokenizer")
    text = (copy / "tokenizer.json").read_text("utf-8")
    (copy / "tokenizer.json").write_text(text.replace(mark, "<|other|>"), "utf-8")
    with pytest.raises(SdcliError, match=r"lacks the mark .*: it is not Qwen's"):
        tokenize(component_in(copy, TOKENIZER), ["a"], True)


def test_a_damaged_tokenizer_is_one_line(home: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(home / "tokenizer", tmp_path / "tokenizer")
    (copy / "tokenizer.json").write_text('{"version": "1.0"}', "utf-8")
    with pytest.raises(SdcliError, match=r"is damaged .* fetch it again"):
        tokenize(component_in(copy, TOKENIZER), ["a"], True)


def borrow(encoder: Component, layers: int) -> Borrow:
    part = cut_after(encoder, layers)
    rows = table(part, module=build_text_encoder(part, ends=False))
    sliced = tuple(replace(row, use="sliced") if row.use == "matrix" else row for row in rows)
    return borrowing(encoder, table=sliced)


def library_states(home: Path, ids: torch.Tensor, length: int) -> tuple[torch.Tensor, ...]:
    library = Qwen3ForCausalLM.from_pretrained(home / "text_encoder", local_files_only=True, dtype=torch.float32).eval()
    mask = (torch.arange(len(ids)) < length)[None]
    with torch.no_grad():
        states = library(input_ids=ids[None], attention_mask=mask, output_hidden_states=True).hidden_states
    return tuple(one[0] for one in states)


@pytest.mark.parametrize("padded", [False, True])
def test_states_are_the_library_s(home: Path, tokenizer: Component, encoder: Component, padded: bool) -> None:
    prompts = tokenize(tokenizer, PROMPTS[:3], True, padded)
    wanted = (0, 1, 3)
    with torch.inference_mode(), borrow_text_encoder(encoder, wanted, borrow(encoder, 3)) as encode:
        given = encode(prompts)
    for prompt, states in zip(prompts, given, strict=True):
        expected = library_states(home, prompt.ids, prompt.length)
        for number, ours in zip(wanted, states, strict=True):
            assert (ours - expected[number]).abs().max() < 1e-5 * expected[number].abs().max()


def test_a_prompt_alone_has_the_same_bits(tokenizer: Component, encoder: Component) -> None:
    prompts = tokenize(tokenizer, PROMPTS[:3], True)
    with torch.inference_mode(), borrow_text_encoder(encoder, [3], borrow(encoder, 3)) as encode:
        together = encode(prompts)
        for prompt, states in zip(prompts, together, strict=True):
            assert torch.equal(encode([prompt])[0], states)


def test_layers_after_the_last_wanted_one_are_not_needed(tokenizer: Component, encoder: Component) -> None:
    kept = {name: origin for name, origin in encoder.weights().items() if "layers.3." not in name and name[0] != "n"}
    lacking = replace(encoder, tensors=kept)
    with torch.inference_mode(), borrow_text_encoder(lacking, [3], borrow(lacking, 3)) as encode:
        assert len(encode(tokenize(tokenizer, ["a"], True))) == 1


def test_too_few_layers_are_one_line(encoder: Component) -> None:
    with (
        pytest.raises(SdcliError, match=r"describes 4 layers, .* from the 5th"),
        borrow_text_encoder(encoder, [5], Borrow(CpuDevice(), torch.float32)),
    ):
        pass


def changed(home: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Component:
    copy = shutil.copytree(home / "text_encoder", tmp_path / "text_encoder")
    table = json.loads((copy / "config.json").read_text("utf-8"))
    change(table)
    (copy / "config.json").write_text(json.dumps(table), "utf-8")
    return component_in(copy, TEXT_ENCODER)


def test_rotary_settings_of_both_versions_are_known(home: Path, tmp_path: Path, encoder: Component) -> None:
    assert encoder.settings.rope_theta == 1e6

    def as_before(table: dict[str, Any]) -> None:
        del table["rope_parameters"]
        table.update(rope_theta=1000000, rope_scaling=None)

    assert changed(home, tmp_path, as_before).settings == encoder.settings


@pytest.mark.parametrize("rotary", [{"rope_type": "yarn", "rope_theta": 1e6}, {"rope_theta": "much"}])
def test_other_rotary_settings_are_refused(home: Path, tmp_path: Path, rotary: dict[str, Any]) -> None:
    with pytest.raises(SdcliError, match="sets 'rope_parameters' to what no known model has"):
        changed(home, tmp_path, lambda table: table.update(rope_parameters=rotary))
