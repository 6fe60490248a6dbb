"""What weights, chunks and changes of a prompt do to its picture: values by hand, from the encoder's own states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdcli.domain import Emphasis, Model, Request
from sdcli.engine import denoise as loop
from sdcli.engine.denoise import conditioning_at
from sdcli.families.contract import Geometry
from sdcli.families.emphasis import emphasised
from sdcli.families.registry import family_of
from sdcli.families.sd.network import encode_prompt
from sdcli.families.sd.text_encoder import tokenize
from sdcli.messages import StepDone
from sdcli.models.opened import open_model
from tests.networks import borrowing
from tests.support import ASTRONAUT, counted, draw, geometry_of, largest_difference, pictures, run_engine

REQUEST = replace(ASTRONAUT, negative="", steps=6)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return open_model("tiny", tiny)


def encoded(model: Model, request: Request) -> dict[str, dict[str, torch.Tensor]]:
    with torch.inference_mode(), encode_prompt(model, request, borrowing(model.parts["text_encoder"])) as run:
        return run({})


def states(model: Model, prompt: str, emphasis: Emphasis = "none") -> torch.Tensor:
    """Of one prompt: (tokens, channels)."""
    given = encoded(model, replace(REQUEST, prompt=prompt, guidance=1.0, emphasis=emphasis))
    return given["conditioning"]["tokens"][0]


def numbers(model: Model, text: str) -> list[int]:
    """Its token numbers, without marks."""
    ids = tokenize(model.parts["tokenizer"], 77, [text]).ids[0, 0].tolist()
    return ids[1 : ids.index(1999)]


def test_weights_are_a1111s_arithmetic(model: Model) -> None:
    """modules/sd_emphasis.py: z * multipliers, then z * (original_mean / new_mean), a chunk at a time."""
    plain = states(model, "a red fox")
    first, second, third = (len(numbers(model, word)) for word in ("a", "red", "fox"))
    weights = torch.ones(77, 1)
    weights[1 + first : 1 + first + second] = 1.3
    weights[1 + first + second : 1 + first + second + third] = 1 / 1.1
    changed = plain * weights
    expected = changed * (plain.mean() / changed.mean())
    torch.testing.assert_close(states(model, "a (red:1.3) [fox]", "a1111"), expected, atol=1e-6, rtol=1e-5)


def test_weights_are_comfyuis_arithmetic(model: Model) -> None:
    """comfy/sd1_clip.py: (z - z_empty) * weight + z_empty, where the weight is not 1."""
    plain, empty = states(model, "a red fox"), states(model, "")
    first, second = (len(numbers(model, word)) for word in ("a", "red"))
    expected = plain.clone()
    there = slice(1 + first, 1 + first + second)
    expected[there] = (plain[there] - empty[there]) * 1.3 + empty[there]
    torch.testing.assert_close(states(model, "a (red:1.3) fox", "comfy"), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(states(model, "a red fox", "comfy"), plain)


def test_numbers_by_hand() -> None:
    two = torch.tensor([[[[1.0], [3.0]]]])
    assert emphasised(two, torch.tensor([[[1.0, 2.0]]]), "a1111").flatten().tolist() == pytest.approx([4 / 7, 24 / 7])
    base = torch.tensor([[0.5], [1.0]])
    assert emphasised(two, torch.tensor([[[1.0, 2.0]]]), "comfy", base).flatten().tolist() == [1.0, 5.0]
    cancelled = emphasised(torch.tensor([[[[1.0], [1.0]]]]), torch.tensor([[[1.0, -1.0]]]), "a1111")
    assert torch.isfinite(cancelled).all()


def test_break_fills_a_chunk(model: Model) -> None:
    apart = states(model, "a red BREAK fox", "a1111")
    assert apart.shape[0] == 154
    assert torch.equal(apart[:77], states(model, "a red")) and torch.equal(apart[77:], states(model, "fox"))


def test_both_prompts_have_as_many_chunks(model: Model) -> None:
    given = encoded(model, replace(REQUEST, prompt="a fox", negative="ugly BREAK blurred BREAK grey"))
    tokens = given["conditioning"]["tokens"]
    assert tokens.shape[:2] == (2, 231) and torch.equal(tokens[1, 77:154], states(model, ""))


@pytest.mark.parametrize("prompt", ["a fox", "a smile :)", "12:30, a|b", "a fox -> [", "C:\\temp"])
def test_a_prompt_without_marks_is_encoded_as_it_is_written(model: Model, prompt: str) -> None:
    request = replace(REQUEST, prompt=prompt, negative="ugly")
    ours, plain = encoded(model, request), encoded(model, replace(request, emphasis="none"))
    assert ours.keys() == plain.keys() == {"conditioning"}
    assert torch.equal(ours["conditioning"]["tokens"], plain["conditioning"]["tokens"])


def test_weights_change_the_picture(tiny: Path) -> None:
    plain = draw(tiny, request=replace(REQUEST, prompt="a red fox"))
    for emphasis in ("a1111", "comfy"):
        heavy = draw(tiny, request=replace(REQUEST, prompt="a (red:3) fox", emphasis=emphasis))
        assert largest_difference(plain, heavy) > 1


@pytest.mark.every(2)
@pytest.mark.parametrize("passes", ["batched", "sequential"])
@pytest.mark.parametrize("sampler", [None, "Heun"])
def test_changes_are_the_conditioning_switched_by_hand(
    tiny: Path, model: Model, monkeypatch: pytest.MonkeyPatch, sampler: str | None, passes: Any
) -> None:
    from tests.support import RESIDENT

    request, plan = replace(REQUEST, sampler=sampler, negative="grey"), replace(RESIDENT, guidance=passes)
    ours = draw(tiny, request=replace(request, prompt="a [fox:cat with a hat:0.5]"), plan=plan)
    fox, cat = (encoded(model, replace(request, prompt=text)) for text in ("a fox", "a cat with a hat"))
    calls = {None: 1, "Heun": 2}[sampler]
    seen = iter([fox] * 3 * calls + [cat] * 3 * calls)
    monkeypatch.setattr(loop, "conditioning_at", lambda *_: next(seen)["conditioning"])
    assert torch.equal(ours, draw(tiny, request=replace(request, prompt="a fox"), plan=plan))


@pytest.mark.full
def test_alternatives_take_turns_and_resume(tiny: Path) -> None:
    request = replace(REQUEST, prompt="a [red|blue|(green:1.4)] fox", negative="[x:y:2]", sampler="DPM++ 2M")
    events = run_engine(tiny, request)
    (whole,) = pictures(events)
    for stopped in [event for event in events if isinstance(event, StepDone)]:
        resumed = run_engine(tiny, request, payload=stopped.payload, checkpoints=(len(stopped.payload),))
        assert torch.equal(pictures(resumed)[0], whole)


def test_steps_that_a_scheduler_adds_have_the_last_wording() -> None:
    state = {"conditioning": {"n": torch.zeros(1)}, "conditioning 1": {"n": torch.ones(1)}}
    turns = {"turns": {"order": torch.tensor([0, 1, 0, 1])}}
    assert [int(conditioning_at({**state, **turns}, step)["n"]) for step in range(6)] == [0, 1, 0, 1, 1, 1]
    assert [int(conditioning_at(state, step)["n"]) for step in (0, 9)] == [0, 0]


@pytest.mark.parametrize("prompt", ["(a:1.1) " * 30, "a BREAK " * 12, "[a|b BREAK c|" + "d " * 90 + "]", "((((a"])
def test_the_bound_of_chunks_holds(model: Model, prompt: str) -> None:
    request = replace(REQUEST, prompt=prompt)
    bound = family_of(model).chunks(model, request)
    most = max(given["tokens"].shape[1] for name, given in encoded(model, request).items() if "tokens" in given)
    assert most <= bound * 77


def test_what_changes_is_counted(tiny: Path, model: Model) -> None:
    """While steps run the other wordings wait, and the text encoder has them all at its end."""
    plain, many = replace(REQUEST, prompt="a [b]", steps=9), replace(REQUEST, prompt="[a|b|c|d|e|f|g|h|i]", steps=9)
    one, nine = counted(tiny, plain), counted(tiny, many)
    geometry: Geometry = geometry_of(model)
    wording_bytes = 2 * geometry.prompt_tokens * 32 * 4
    for way, count in one["denoise"].ways.items():
        assert nine["denoise"].ways[way].live_bytes - count.live_bytes == 8 * wording_bytes
    more_bytes = nine["encode_prompt"].ways[""].live_bytes - one["encode_prompt"].ways[""].live_bytes
    assert more_bytes >= 8 * wording_bytes
