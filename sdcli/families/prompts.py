"""Prompts as people write them: A1111's weights, BREAK, alternatives and changes from step to step. No torch.

    (word) (word:1.3) [word]    weighs 1.1, 1.3 and 1 / 1.1 times as much; brackets inside brackets multiply
    BREAK                       what follows begins a chunk of the text encoder
    [from:to:when] [a|b]        changes after so many steps, or such a share of them, and at every step
    \\( \\) \\[ \\] \\: \\| \\\\        these characters themselves

https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features, modules/prompt_parser.py. A bracket
that nobody closes weighs to the end, as there. Whatever is none of this is taken as it is written: a bracket that was
not opened, a colon without a number. Every function takes a time that grows with the length of the prompt, no faster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from sdcli.domain import Request

WEIGHT_MOST = 100.0
"""A number beyond it is no weight, and brackets inside brackets come to no more."""

STRONGER, WEAKER = 1.1, 1 / 1.1

_TOKEN = re.compile(r"\\[\\()\[\]:|]|[()\[\]:|]|[^\\()\[\]:|]+|\\")
_MARKS = re.compile(r"[\\()\[\]]|\bBREAK\b")
_BREAK = re.compile(r"\bBREAK\b")
_WEIGHT = re.compile(r"\s*([+-]?(?:[0-9]{1,32}\.?[0-9]{0,32}|\.[0-9]{1,32}))\s*")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]{1,32}\.?[0-9]{0,32}|\.[0-9]{1,32})(?:[eE][+-]?[0-9]{1,3})?)\s*")
_BLANK = "()[] \n\t"
"""What is nothing to weigh."""

_PAIRS = {")": "(", "]": "["}


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that weigh the same. So many chunks are ended before them."""

    text: str
    weight: float = 1.0
    breaks: int = 0


Wording = tuple[Phrase, ...]
"""What a prompt says at one step."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The wordings of a request: each different pair of negative prompt and prompt once, and which one a step has."""

    pairs: tuple[tuple[Wording, Wording], ...]
    order: tuple[int, ...]
    """The number of the pair, a step; empty where there is one pair."""

    @property
    def weighted(self) -> bool:
        """Whether any words weigh more or less than others."""
        return any(phrase.weight != 1 for pair in self.pairs for wording in pair for phrase in wording)


def turns_of(request: Request) -> Turns:
    """What the text encoder has to encode, and when it is used."""
    negative = request.negative if request.guided else ""
    if request.emphasis == "none":
        return Turns((((Phrase(negative),), (Phrase(request.prompt),)),), ())
    return _turns(negative, request.prompt, request.steps_run, sum(one.steps_run for one in request.rounds[1:]))


def is_marked(request: Request) -> bool:
    """Whether a prompt has marks that nobody writes but for a program that reads them: a weight in numbers or in
    several brackets, an alternative, a change, BREAK."""
    turns = turns_of(request)
    phrases = [phrase for pair in turns.pairs for wording in pair for phrase in wording]
    plain = {1.0, STRONGER, WEAKER}
    return bool(turns.order) or any(phrase.breaks or phrase.weight not in plain for phrase in phrases)


@lru_cache(maxsize=8)
def _turns(negative: str, prompt: str, steps: int, more: int) -> Turns:
    by_step = list(zip(_wordings(negative, steps, more), _wordings(prompt, steps, more), strict=True))
    numbers: dict[tuple[Wording, Wording], int] = {}
    order = tuple(numbers.setdefault(pair, len(numbers)) for pair in by_step)
    return Turns(tuple(numbers), order if len(numbers) > 1 else ())


def _wordings(prompt: str, steps: int, more: int) -> Iterator[Wording]:
    """What it says at each step, at least at one, and at as many `more` in another round, when all has changed."""
    parsed = _Parsed(prompt)
    known: dict[tuple[int, ...], Wording] = {}
    for step in range(1, max(steps, 1) + more + 1):
        chosen = tuple(choice.at(step, steps) for choice in parsed.choices.values())
        if chosen not in known:
            known[chosen] = parsed.wording(dict(zip(parsed.choices, chosen, strict=True)))
        yield known[chosen]


@dataclass(frozen=True, slots=True)
class _Choice:
    """Square brackets of which a step has one section, from a token to before another: an alternative, or a change."""

    sections: tuple[tuple[int, int], ...]
    when: str | None = None
    """A number of steps, or with a point a share of them."""

    def at(self, step: int, steps: int) -> int:
        """The section of a step, counted from 1."""
        if self.when is None:
            return (step - 1) % len(self.sections)
        number = float(self.when)
        changes_after = int(number * steps) if "." in self.when else int(number)
        return int(step > min(steps, changes_after))


@dataclass(slots=True)
class _Parsed:
    """A prompt in tokens: which brackets weigh, which offer a choice; all others are words."""

    prompt: str
    tokens: list[str] = field(default_factory=list)
    closes: dict[int, int] = field(default_factory=dict)
    """From a bracket that means something to its other half."""
    weights: dict[int, float] = field(default_factory=dict)
    """Of brackets that weigh."""
    choices: dict[int, _Choice] = field(default_factory=dict)
    skips: dict[int, int] = field(default_factory=dict)
    """From the colon of a weight to the bracket behind it."""

    def __post_init__(self) -> None:
        if not _MARKS.search(self.prompt):
            self.tokens = [self.prompt]
            return
        self.tokens = _TOKEN.findall(self.prompt)
        opened, marks, left = list[tuple[int, int]](), list[int](), {"(": 0, "[": 0}
        for at, token in enumerate(self.tokens):
            if token in left:
                opened.append((at, len(marks)))
                left[token] += 1
            elif token in (":", "|"):
                marks.append(at)
            elif token in _PAIRS and left[_PAIRS[token]]:
                while True:  # what was opened since and not closed is words
                    begin, first = opened.pop()
                    left[self.tokens[begin]] -= 1
                    if self.tokens[begin] == _PAIRS[token]:
                        break
                self._close(begin, at, marks[first:])
                del marks[first:]
        last = next((at for at in reversed(range(len(self.tokens))) if self.tokens[at].strip(_BLANK)), 0)
        for begin, _ in opened:
            if begin < last:
                self.weights[begin] = STRONGER if self.tokens[begin] == "(" else WEAKER
                self.closes[begin] = len(self.tokens)

    def _close(self, begin: int, end: int, marks: list[int]) -> None:
        """A pair of brackets, and the colons and bars that are in it and in none of those inside."""
        self.closes[begin] = end
        colons = [mark for mark in marks if self.tokens[mark] == ":"]
        last = self.tokens[end - 1] if colons and colons[-1] == end - 2 else ""
        if self.tokens[begin] == "(":
            number = _WEIGHT.fullmatch(last)
            weighs = number is not None and abs(float(number[1])) <= WEIGHT_MOST
            self.weights[begin] = float(number[1]) if number is not None and weighs else STRONGER
            if weighs:
                self.skips[end - 2] = end
        elif marks and not colons:
            bounds = [begin, *marks, end]
            self.choices[begin] = _Choice(tuple((a + 1, b) for a, b in pairwise(bounds)))
        elif len(marks) == len(colons) in (1, 2) and (number := _WHEN.fullmatch(last)) and _is_finite(number[1]):
            before = (begin + 1, colons[0]) if len(colons) == 2 else (end, end)
            after = (colons[-2] + 1 if len(colons) == 2 else begin + 1, colons[-1])
            self.choices[begin] = _Choice((before, after), number[1])
        else:
            self.weights[begin] = WEAKER

    def wording(self, chosen: dict[int, int]) -> Wording:
        """What it says with these sections of its choices."""
        said, weights, skips, ends = _Said(), [1.0], dict(self.skips), dict[int, bool]()
        at = 0
        while at < len(self.tokens):
            if at in skips:
                at = skips[at]
            elif at in self.choices:
                begin, end = self.choices[at].sections[chosen[at]]
                skips[end] = self.closes[at] + 1
                at = begin
            elif at in self.weights:
                weights.append(max(-WEIGHT_MOST, min(WEIGHT_MOST, weights[-1] * self.weights[at])))
                ends[self.closes[at]] = True
                at += 1
            elif at in ends:
                weights.pop()
                at += 1
            else:
                said.say(self.tokens[at], weights[-1])
                at += 1
        return said.wording()


class _Said:
    """Gathers words."""

    def __init__(self) -> None:
        self._phrases: list[tuple[list[str], float, int]] = []
        self._breaks = 0

    def say(self, token: str, weight: float) -> None:
        if len(token) == 2 and token[0] == "\\":
            return self._add(token[1], weight)
        first, *others = _BREAK.split(token)
        self._add(first.rstrip() if others else first, weight)
        for text in others:
            self._breaks += 1
            self._add(text.strip(), weight)
        return None

    def _add(self, text: str, weight: float) -> None:
        if not text:
            return
        if self._phrases and self._phrases[-1][1] == weight and not self._breaks:
            self._phrases[-1][0].append(text)
        else:
            self._phrases.append(([text], weight, self._breaks))
            self._breaks = 0

    def wording(self) -> Wording:
        return tuple(Phrase("".join(texts), weight, breaks) for texts, weight, breaks in self._phrases) or (Phrase(""),)


def _is_finite(number: str) -> bool:
    return math.isfinite(float(number))
