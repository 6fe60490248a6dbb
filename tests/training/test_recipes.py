"""What scenes hold and how they are told."""

from __future__ import annotations

import random

import pytest
import torch

from training.evaluate import held_out_prompts
from training.glyphs import Glyphs
from training.recipes import COLOUR_NAMES, LARGE, MEDIUM, PLACES, Planner, article, caption_words, plain_caption


@pytest.fixture(scope="module")
def planner(glyphs: Glyphs) -> Planner:
    return Planner(glyphs.names)


def test_no_training_scene_shows_a_held_out_combination(planner: Planner) -> None:
    assert planner.held_colour.any() and planner.held_pair.any()
    recipe = planner.draw(20_000, torch.Generator().manual_seed(0))
    first, second = recipe.objects.unbind(1)
    pair = second >= 0
    assert 0.1 < pair.float().mean() < 0.35
    assert not planner.held_colour[first, recipe.colour].any()
    assert not planner.held_colour[second[pair], recipe.colour[pair]].any()
    assert not planner.held_pair[first[pair], second[pair]].any()
    assert (first != second).all()


def test_every_combination_that_is_not_held_out_is_shown(planner: Planner) -> None:
    recipe = planner.draw(20_000, torch.Generator().manual_seed(0))
    shown = torch.zeros_like(planner.held_colour)
    shown[recipe.objects[:, 0], recipe.colour] = True
    assert (shown | planner.held_colour).all()


def test_every_question_is_a_held_out_combination(planner: Planner) -> None:
    questions = held_out_prompts(planner, 30)
    objects, colour = questions.recipe.objects, questions.recipe.colour
    assert len(questions.prompts) == len(set(questions.prompts)) == len(objects)
    for (one, other), shade in zip(objects.tolist(), colour.tolist(), strict=True):
        assert planner.held_colour[one, shade] if other < 0 else planner.held_pair[one, other]
    assert (objects[:, 1] >= 0).any() and (objects[:, 1] < 0).any()


def test_the_split_does_not_depend_on_the_order_of_concepts(glyphs: Glyphs, planner: Planner) -> None:
    turned = Planner(glyphs.names[::-1])
    assert torch.equal(turned.held_colour.flip(0), planner.held_colour)
    assert torch.equal(turned.held_pair.flip(0, 1), planner.held_pair)
    assert torch.equal(planner.held_pair, planner.held_pair.T)


def test_two_objects_do_not_overlap_and_all_are_inside(planner: Planner) -> None:
    recipe = planner.draw(5_000, torch.Generator().manual_seed(1))
    boxes = recipe.boxes
    alone = recipe.objects[:, 1] < 0
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    assert low[alone, 0].min() >= 0 and high[alone, 0].max() <= 1
    one, other = boxes[~alone].unbind(1)
    apart = (one[:, :2] - other[:, :2]).abs().amax(1)
    assert (apart >= (one[:, 2] + other[:, 2]) / 2 - 0.01).all()


def test_places_are_where_the_words_say(planner: Planner) -> None:
    for number, (words, x, y) in enumerate(PLACES):
        row = torch.tensor([number])
        none = torch.zeros(1, dtype=torch.long)
        box = planner.exactly(none, none - 1, none, none + MEDIUM, row, none.bool()).boxes[0, 0]
        assert [torch.sign((value - 0.5).round(decimals=4)) for value in box[:2]] == [x, y], words
    large = planner.exactly(none, none - 1, none, none + LARGE, row, none.bool())
    assert large.boxes[0, 0, :2].tolist() == [0.5, 0.5] and large.place.tolist() == [0]


def test_captions_name_what_the_scene_holds(glyphs: Glyphs, planner: Planner) -> None:
    recipe = planner.draw(2_000, torch.Generator().manual_seed(2))
    captions = planner.captions(recipe, random.Random(2))
    for (one, other), caption in zip(recipe.objects.tolist(), captions, strict=True):
        for index in (one, other):
            assert index < 0 or any(name in caption for name in glyphs.names[index])
    known = set(caption_words(glyphs.names))
    unknown = [caption for caption in captions if set(caption.replace(",", "").split()) - known]
    assert 0.02 < len(unknown) / len(captions) < 0.1  # those with words that mean nothing
    assert len(set(captions)) > 500


def test_plain_captions() -> None:
    assert plain_caption(["fox", "red apple"], "green") == "a fox and a red apple on a green background"
    assert plain_caption(["owl"], "orange", "small", "at the top") == "a small owl at the top on an orange background"
    assert [article(words) for words in ("umbrella", "unicorn", "scissors", "cactus", "glass")] == [
        "an umbrella", "a unicorn", "scissors", "a cactus", "a glass",
    ]  # fmt: skip
    assert len(COLOUR_NAMES) >= 10
