"""Names for pictures that nobody named. Refuses to know which of them are taken."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator

SLUG_CHARACTERS = 40

_MOST_NAMES = 100_000


def invented_names(prompt: str, seed: int, suffix: str) -> Iterator[str]:
    """`a-red-cat-42.png`, then `a-red-cat-42-2.png` and so on, for whoever finds the first ones taken."""
    stem = f"{_slug(prompt)}-{seed}"
    return itertools.chain((stem + suffix,), (f"{stem}-{number}{suffix}" for number in range(2, _MOST_NAMES)))


def _slug(prompt: str) -> str:
    """The first words of `prompt`, in ASCII; `picture` if it has none."""
    ascii_text = unicodedata.normalize("NFKD", prompt[:1000]).encode("ascii", "ignore").decode()
    slug = "-".join(re.findall(r"[a-z0-9]+", ascii_text.lower()))[: SLUG_CHARACTERS + 1]
    if len(slug) > SLUG_CHARACTERS:
        slug = slug.rpartition("-")[0] or slug[:SLUG_CHARACTERS]
    return slug or "picture"
