"""Textual inversion: words that a file brings, each some vectors in the text encoder's table (Gal et al. 2022).

https://arxiv.org/abs/2208.01618. Two layouts are out there: A1111's, `emb_params` of (vectors, width), and diffusers',
a tensor by the word's own name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from sdcli.domain import Component, Origin, WeightFile, Word
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import WEIGHT_DTYPES
from sdcli.families.sd.parts import TEXT_ENCODER
from sdcli.families.sd.schema import TextEncoder

VECTORS_MOST = 75
"""Of a word: it has to fit into a chunk of the prompt."""

_NOT_OURS = {"clip_g": "Stable Diffusion XL", "clip_l": "Stable Diffusion XL", "t5xxl": "another family"}


def words_of(file: WeightFile, parts: Mapping[str, Component]) -> dict[str, tuple[Word, ...]]:
    """The words that a file brings to the text encoder. Raises SdcliError for a file that brings none."""
    for key, whose in _NOT_OURS.items():
        if key in file.tensors:
            raise SdcliError(f"{echo(file.path)} is an embedding for {whose}, not for this model: give another")
    if len(file.tensors) != 1:
        raise SdcliError(
            f"{echo(file.path)} has {len(file.tensors)} tensors and is no textual inversion, which has one:"
            " give an embedding in safetensors"
        )
    (stored,) = file.tensors
    names = {file.path.stem} | ({stored} if stored not in ("emb_params", "string_to_param") else set())
    settings: TextEncoder = parts[TEXT_ENCODER.name].settings
    return {TEXT_ENCODER.name: words_by(file, stored, names, settings.hidden_size)}


def words_by(file: WeightFile, stored: str, names: Collection[str], width: int) -> tuple[Word, ...]:
    """One word by these names, of vectors that a tensor has. Raises SdcliError unless they are of this width."""
    info = file.tensors[stored]
    shape = info.shape if len(info.shape) == 2 else (1, *info.shape)
    if len(shape) != 2 or info.dtype not in WEIGHT_DTYPES or not 1 <= shape[0] <= VECTORS_MOST:
        raise SdcliError(f"{echo(file.path)} is no textual inversion: its tensor {echo(stored)} is no list of vectors")
    if shape[1] != width:
        raise SdcliError(
            f"{echo(file.path)} has vectors of {shape[1]} numbers, and this model's text encoder takes"
            f" {width}: it is an embedding for another family"
        )
    origin = Origin(file.path, stored, info)
    return tuple(Word(name, shape[0], origin, file.stamp) for name in sorted(names))


def split_at(prompt: str, names: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """The prompt cut at the words by these names, in any case, alone or as embedding:NAME: (text before one, its name).

    The last text has none after it. Longer names come first.
    """
    by_name = {name.casefold(): name for name in names}
    every = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)(?:embedding:)?({every})(?!\w)", re.IGNORECASE) if names else None
    at = 0
    for found in pattern.finditer(prompt) if pattern is not None else ():
        yield prompt[at : found.start()], by_name[found[1].casefold()]
        at = found.end()
    yield prompt[at:], None


def vectors_of(prompt: str, words: Iterable[Word]) -> int:
    """Tokens that words of their own take in a prompt."""
    vectors = {word.name: word.vectors for word in words}
    return sum(vectors[name] for _, name in split_at(prompt, vectors) if name is not None)
