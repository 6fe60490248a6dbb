"""Prompts are read as A1111 reads them; what is no syntax is words, and nothing is an error."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest

from sdcli.domain import Request
from sdcli.families.prompts import Phrase, is_marked, turns_of

REQUEST = Request("", "", 64, 64, 10, 7.5, 0, 1)


def said(prompt: str, steps: int = 10) -> list[list[tuple[str, float]]]:
    """Words and weights of each step."""
    turns = turns_of(replace(REQUEST, prompt=prompt, steps=steps))
    order = turns.order or (0,) * steps
    assert len(order) == steps and set(order) == set(range(len(turns.pairs)))
    return [[(phrase.text, round(phrase.weight, 4)) for phrase in turns.pairs[number][1]] for number in order]


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(word:1.3)", [("word", 1.3)]),
        ("( word : 1.3 )", [(" word ", 1.3)]),
        ("((word))", [("word", 1.21)]),
        ("[word]", [("word", 0.9091)]),
        ("[[word]]", [("word", 0.8264)]),
        ("[(word)]", [("word", 1.0)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1.0),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ],
        ),
        (r"\(literal\] \[and\) \\", [(r"(literal] [and) " + "\\", 1.0)]),
        ("(a:b:1.5)", [("a:b", 1.5)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("(a:.5)", [("a", 0.5)]),
        ("(a:2.)", [("a", 2.0)]),
        ("(a:)", [("a:", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:1e9)", [("a:1e9", 1.1)]),
        ("(a:1000)", [("a:1000", 1.1)]),
        ("(:1.2)", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unclosed:0.5", [("unclosed:0.5", 0.9091)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a :( b", [("a :", 1.0), (" b", 1.1)]),
        ("([a)]", [("[a", 1.1), ("]", 1.0)]),
        ("(embedding:bad-hands:1.2), EasyNegative", [("embedding:bad-hands", 1.2), (", EasyNegative", 1.0)]),
    ],
)
def test_weights(prompt: str, phrases: list[tuple[str, float]]) -> None:
    assert said(prompt) == [phrases] * 10


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a, b: c; d|e",
        "a smile :) or :-] but not :(",
        ":([",
        "time 12:30, ratio 16:9",
        "closed)",
        "a ] b",
        "C:\\temp",
        "a \\ b",
        "BREAKFAST and BREAKS",
        "🦊 ) שועל",
    ],
)
def test_what_is_no_syntax_stays_as_it_is_written(prompt: str) -> None:
    assert said(prompt) == [[(prompt, 1.0)]] * 10
    turns = turns_of(replace(REQUEST, prompt=prompt))
    assert not turns.weighted and not turns.order


def test_without_emphasis_everything_is_words() -> None:
    prompt = "(a:1.3) [b|c] BREAK \\("
    turns = turns_of(replace(REQUEST, prompt=prompt, negative="[x]", emphasis="none"))
    assert turns.pairs == (((Phrase("[x]"),), (Phrase(prompt),)),) and turns.order == ()


@pytest.mark.parametrize(
    ("prompt", "by_step"),
    [
        ("[cat|dog] runs", ["cat runs", "dog runs"] * 5),
        ("[a|b|]", ["a", "b", "", "a", "b", "", "a", "b", "", "a"]),
        ("[from:to:3]", ["from"] * 3 + ["to"] * 7),
        ("[from:to:0.5]", ["from"] * 5 + ["to"] * 5),
        ("[from:to: 0.25 ]", ["from"] * 2 + ["to"] * 8),
        ("[to:4]", [""] * 4 + ["to"] * 6),
        ("[from::4]", ["from"] * 4 + [""] * 6),
        ("[from:to:0]", ["to"] * 10),
        ("[from:to:-3]", ["to"] * 10),
        ("[from:to:1e3]", ["from"] * 10),
        ("[from:to:1.0]", ["from"] * 10),
        ("a [b [c:d:0.3]:e:0.6]", ["a b c"] * 3 + ["a b d"] * 3 + ["a e"] * 4),
        ("[[a|b]:c:0.2]", ["a", "b"] + ["c"] * 8),
        (r"[a\|b|c]", ["a|b", "c"] * 5),
        (r"[a\:b:c:5]", ["a:b"] * 5 + ["c"] * 5),
    ],
)
def test_words_change_from_step_to_step(prompt: str, by_step: list[str]) -> None:
    assert ["".join(text for text, _ in phrases) for phrases in said(prompt)] == by_step


@pytest.mark.parametrize("prompt", ["[a:b|c:0.5]", "[a:b:c:0.5]", "[a:b]", "[a:b:c]"])
def test_brackets_that_are_no_change_weigh_less(prompt: str) -> None:
    assert said(prompt) == [[(prompt[1:-1], 0.9091)]] * 10


def test_weights_within_changes_and_changes_within_weights() -> None:
    assert said("[(a:1.5):b:5]")[4:6] == [[("a", 1.5)], [("b", 1.0)]]
    assert said("([a|b]:1.5) c")[:2] == [[("a", 1.5), (" c", 1.0)], [("b", 1.5), (" c", 1.0)]]
    assert said("(a [x:2] b:1.5)")[1:3] == [[("a  b", 1.5)], [("a x b", 1.5)]]


def test_break_begins_a_chunk() -> None:
    turns = turns_of(replace(REQUEST, prompt="BREAK a BREAK\nBREAK (b BREAK c:1.2) BREAK"))
    ((_, wording),) = turns.pairs
    assert wording == (Phrase("a", 1.0, 1), Phrase("b", 1.2, 2), Phrase("c", 1.2, 1))


def test_pairs_are_there_once_and_the_negative_prompt_changes_too() -> None:
    turns = turns_of(replace(REQUEST, prompt="[a|b]", negative="[x:y:0.5]", steps=8))
    assert turns.order == (0, 1, 0, 1, 2, 3, 2, 3) and len(turns.pairs) == 4
    assert len(turns_of(replace(REQUEST, prompt="[a|b]", negative="[x:y:0.5]", guidance=1.0)).pairs) == 2
    assert turns_of(replace(REQUEST, prompt="[a:b:0.5]", steps=10, strength=0.4)).order == (0, 0, 1, 1)


def test_weights_of_many_brackets_stay_finite() -> None:
    ((_, (phrase,)),) = turns_of(replace(REQUEST, prompt="(" * 20_000 + "a" + ")" * 20_000)).pairs
    assert phrase == Phrase("a", 100.0)


MARKS = [
    *"()[]:|\\,. aB1-+",
    "BREAK",
    ":0.5]",
    ":1.3)",
    "[",
    "(",
    "|",
    ":",
    "\\(",
    "word",
    "🦊",
    "\u202e",
    "\n",
    "9" * 40,
]


@pytest.mark.every(5)
@pytest.mark.parametrize("seed", [19, 20, 21, 22, 23])
def test_no_prompt_is_an_error(seed: int) -> None:
    generator, began = random.Random(seed), time.process_time()
    for _ in range(20_000):
        prompt = "".join(generator.choices(MARKS, k=generator.randrange(12)))
        turns = turns_of(replace(REQUEST, prompt=prompt, steps=2))
        assert all(abs(phrase.weight) <= 100 for pair in turns.pairs for phrase in pair[1])
    assert time.process_time() - began < 12


@pytest.mark.parametrize(
    "part", ["(", "[", ")", "(a", "[a:", "(:", "[|", "\\", "(a)", "[a|b]", "[a:b:0.5]", "BREAK ", " ", "((:1)"]
)
def test_long_prompts_take_a_time_that_grows_with_their_length(part: str) -> None:
    def count(length: int) -> float:
        began = time.process_time()
        turns_of(replace(REQUEST, prompt=part * (length // len(part)), steps=2))
        return time.process_time() - began

    count(1000)
    assert count(60_000) < 20 * count(15_000) + 0.2


@pytest.mark.parametrize(
    "prompt", ["a (red:1.3) fox", "a ((red)) fox", "a [red|blue] fox", "[a:b:0.5]", "a BREAK b", "[a::3]"]
)
def test_marks_of_programs_are_told_from_sentences(prompt: str) -> None:
    assert is_marked(replace(REQUEST, prompt=prompt, steps=8))
    assert not is_marked(replace(REQUEST, prompt=prompt, steps=8, emphasis="none"))


@pytest.mark.parametrize(
    "prompt", ["", "a red fox (young) at 12:30", "a sign [EXIT]", "a fox: red", r"\\(a:1.3\\)", "break"]
)
def test_a_sentence_has_no_marks(prompt: str) -> None:
    assert not is_marked(replace(REQUEST, prompt=prompt, steps=8))
