"""What a scene holds and how it is said: colours, sizes, places, one or two objects, and captions in many forms.

A fixed tenth of all concept x colour and of all concept x concept combinations is held out: no training scene
shows one, so that drawing one is composition and not memory.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

import torch

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 58, 52),
    "orange": (240, 140, 40),
    "yellow": (248, 214, 72),
    "green": (76, 168, 84),
    "teal": (40, 150, 150),
    "blue": (60, 110, 214),
    "purple": (132, 82, 180),
    "pink": (244, 150, 184),
    "brown": (128, 86, 58),
    "gray": (150, 150, 154),
    "black": (28, 28, 32),
    "white": (248, 248, 248),
}
COLOUR_NAMES = list(COLOURS)
SAME_COLOUR = {"gray": "grey", "purple": "violet", "teal": "turquoise"}

SIZES = (0.40, 0.62, 0.88)
"""Side of an object's box as a share of the picture's: small, unsaid, large."""

SIZE_WORDS = (("small", "little", "tiny"), ("",), ("large", "big", "huge"))
SMALL, MEDIUM, LARGE = range(3)

PLACES: tuple[tuple[str, int, int], ...] = (
    ("", 0, 0),
    ("at the top", 0, -1),
    ("at the bottom", 0, 1),
    ("on the left", -1, 0),
    ("on the right", 1, 0),
    ("in the top left corner", -1, -1),
    ("in the top right corner", 1, -1),
    ("in the bottom left corner", -1, 1),
    ("in the bottom right corner", 1, 1),
)
"""Words, and the direction from the centre: x to the right, y down."""

MARGIN, PAIR_SIDE, PAIR_OFFSET = 0.03, 0.44, 0.24
"""Shares of the picture's side: from a box to the edge; the box of one of two objects; its way from the centre."""

SHIFT, STRETCH, TINT = 0.012, 0.02, 0.012
"""How far places, sizes (relative) and colours (of 0…1) vary about what the words say."""

BESIDE, ABOVE = ("and", "next to", "beside"), ("above", "over")

FORMS = (
    (0.47, "{0} on {1} background"),
    (0.13, "{0} on {2}"),
    (0.10, "{0}, {2} background"),
    (0.10, "{2} background, {0}"),
    (0.06, "a picture of {0} on {1} background"),
    (0.04, "picture of {0}, {2} background"),
    (0.05, "{0} with {1} background"),
    (0.05, "{0} in front of {1} background"),
)
"""How a caption says object and colour; {1} is the colour with its article."""

UNSAID, BARE, ALIAS, JUNK = 0.07, 0.1, 0.3, 0.06
"""Shares of captions: without the colour, without articles, by another name, with words that mean nothing."""

HELD_OUT = 10
"""One in so many combinations is never shown in training."""


def is_held_out(*words: str) -> bool:
    """Whether a combination belongs to the held-out tenth: by CRC-32 of its words, whatever their order."""
    return zlib.crc32("|".join(sorted(words)).encode()) % HELD_OUT == 0


@dataclass(frozen=True)
class Recipe:
    """Scenes to draw, all on the CPU.

    `objects` (scenes, k) concept numbers or -1; `boxes` (scenes, k, 3) centre x, y and side as shares of the
    picture; `background` (scenes, 3) RGB of 0…1; `colour`, `size`, `place` (scenes,) what the words say;
    `above` (scenes,) whether the first of two objects is over the second rather than to its left.
    """

    objects: torch.Tensor
    boxes: torch.Tensor
    background: torch.Tensor
    colour: torch.Tensor
    size: torch.Tensor
    place: torch.Tensor
    above: torch.Tensor

    def __len__(self) -> int:
        return len(self.objects)


class Planner:
    """Draws recipes at random for concepts of the given names, never a held-out combination."""

    def __init__(self, names: list[list[str]]) -> None:
        self.names = names
        usual = [group[0] for group in names]
        self.held_colour = torch.tensor([[is_held_out(name, "on " + c) for c in COLOUR_NAMES] for name in usual])
        self.held_pair = torch.tensor([[a != b and is_held_out(a, b) for b in usual] for a in usual])
        self.palette = torch.tensor([COLOURS[name] for name in COLOUR_NAMES]).float() / 255

    def draw(self, count: int, generator: torch.Generator, pairs: float = 0.3) -> Recipe:
        """`count` scenes that a caption can describe."""

        def chance(share: float) -> torch.Tensor:
            return torch.rand(count, generator=generator) < share

        concepts = len(self.names)
        first = torch.randint(concepts, (count,), generator=generator)
        second = torch.randint(concepts, (count,), generator=generator)
        pair = chance(pairs)
        for _ in range(20):
            wrong = (second == first) | self.held_pair[first, second]
            if not wrong.any():
                break
            second = torch.where(wrong, torch.randint(concepts, (count,), generator=generator), second)
        pair &= ~((second == first) | self.held_pair[first, second])
        pair &= ~(self.held_colour[first] | self.held_colour[second]).all(1)
        barred = self.held_colour[first] | (self.held_colour[second] & pair[:, None])
        colour = torch.rand(count, len(COLOUR_NAMES), generator=generator).masked_fill(barred, -1).argmax(1)
        size = torch.multinomial(torch.tensor([0.25, 0.55, 0.2]), count, replacement=True, generator=generator)
        place = torch.randint(1, len(PLACES), (count,), generator=generator) * chance(0.4)
        recipe = self.exactly(first, torch.where(pair, second, -1), colour, size, place, chance(0.2))
        return self._loosened(recipe, generator)

    def exactly(
        self,
        first: torch.Tensor,
        second: torch.Tensor,
        colour: torch.Tensor,
        size: torch.Tensor,
        place: torch.Tensor,
        above: torch.Tensor,
    ) -> Recipe:
        """The scenes just as the words say, all arguments (scenes,); a `second` of -1 is none.

        Two objects have sizes and places of their own, and a large one is in the middle.
        """
        pair = second >= 0
        size = torch.where(pair, MEDIUM, size)
        place = torch.where(pair | (size == LARGE), 0, place)
        above = above & pair
        directions = torch.tensor([(x, y) for _, x, y in PLACES]).float()[place]
        side = torch.tensor(SIZES)[size]
        alone = torch.cat([0.5 + directions * (0.5 - side / 2 - MARGIN)[:, None], side[:, None]], 1)
        step = torch.stack([(~above).float(), above.float()], 1) * PAIR_OFFSET
        width = torch.full((len(first), 1), PAIR_SIDE)
        one, other = torch.cat([0.5 - step, width], 1), torch.cat([0.5 + step, width], 1)
        boxes = torch.stack([torch.where(pair[:, None], one, alone), other], 1)
        objects = torch.stack([first, second], 1)
        return Recipe(objects, boxes, self.palette[colour], colour, size, place, above)

    def _loosened(self, recipe: Recipe, generator: torch.Generator) -> Recipe:
        def about(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator) * 2 - 1

        count, objects = recipe.objects.shape
        boxes = recipe.boxes.clone()
        boxes[..., :2] += SHIFT * about(count, objects, 2)
        boxes[..., 2] *= 1 + STRETCH * about(count, objects)
        background = (recipe.background + TINT * about(count, 3)).clamp(0, 1)
        return Recipe(recipe.objects, boxes, background, recipe.colour, recipe.size, recipe.place, recipe.above)

    def scatter(self, count: int, generator: torch.Generator, objects: int = 4) -> Recipe:
        """Scenes without words for the autoencoder: several objects anywhere, in any size, on any colour."""
        chosen = torch.randint(len(self.names), (count, objects), generator=generator)
        side = 0.25 + 0.45 * torch.rand(count, objects, 1, generator=generator)
        centre = torch.rand(count, objects, 2, generator=generator)
        none = torch.zeros(count, dtype=torch.long)
        background = torch.rand(count, 3, generator=generator)
        return Recipe(chosen, torch.cat([centre, side], 2), background, none, none, none, none.bool())

    def captions(self, recipe: Recipe, chance: random.Random) -> list[str]:
        """One caption a scene, in one of many forms."""
        rows = zip(
            recipe.objects.tolist(), recipe.colour.tolist(), recipe.size.tolist(), recipe.place.tolist(),
            recipe.above.tolist(), strict=True,
        )  # fmt: skip
        return [self._caption(*row, chance) for row in rows]

    def _caption(
        self, objects: list[int], colour: int, size: int, place: int, above: bool, chance: random.Random
    ) -> str:
        bare = chance.random() < BARE
        nouns = []
        for index in objects:
            if index >= 0:
                group = self.names[index]
                name = chance.choice(group) if chance.random() < ALIAS else group[0]
                words = f"{chance.choice(SIZE_WORDS[size])} {name}".strip()
                nouns.append(words if bare else article(words))
        thing = f" {chance.choice(ABOVE if above else BESIDE)} ".join(nouns)
        thing = f"{thing} {PLACES[place][0]}".strip()
        said = COLOUR_NAMES[colour]
        if said in SAME_COLOUR and chance.random() < 0.3:
            said = SAME_COLOUR[said]
        if chance.random() >= UNSAID:
            (form,) = chance.choices([form for _, form in FORMS], [share for share, _ in FORMS])
            thing = form.format(thing, said if bare else article(said), said)
        return _with_junk(thing, chance) if chance.random() < JUNK else thing


def plain_caption(names: list[str], colour: str, size: str = "", place: str = "", above: bool = False) -> str:
    """The caption in its plainest form: "a small fox at the top on a blue background"."""
    nouns = (f" {'above' if above else 'and'} ").join(article(f"{size} {name}".strip()) for name in names)
    return f"{nouns} {place}".strip() + f" on {article(colour)} background"


def article(words: str) -> str:
    """The words with "a" or "an" before, unless they are several: "a fox", "an owl", "scissors", "a cactus"."""
    if words.endswith("s") and not words.endswith(("ss", "us", "is")):
        return words
    return f"{'an' if words[:1] in 'aeio' or words.startswith(('um', 'ug', 'un ')) else 'a'} {words}"


def _with_junk(caption: str, chance: random.Random) -> str:
    """The caption with one to three words of random letters, so that unknown words are learned to mean nothing."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    junk = " ".join("".join(chance.choices(letters, k=chance.randint(2, 7))) for _ in range(chance.randint(1, 3)))
    return f"{junk} {caption}" if chance.random() < 0.5 else f"{caption}, {junk}"


def caption_words(names: list[list[str]]) -> list[str]:
    """Every word that a caption may hold, in the order of the alphabet."""
    said = [word for group in names for word in group]
    said += [*COLOUR_NAMES, *SAME_COLOUR.values(), *BESIDE, *ABOVE, "a", "an"]
    said += [word for words in SIZE_WORDS for word in words] + [words for words, _, _ in PLACES]
    said += [form.replace("{0}", "").replace("{1}", "").replace("{2}", "").replace(",", "") for _, form in FORMS]
    return sorted({word for words in said for word in words.split()})
