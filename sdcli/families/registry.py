"""The one list of families, and how a folder's is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from sdcli.domain import Component, Model, Prediction, WeightFile, Word
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import Family, FindParts, FindWords, Found, Numbers, Part
from sdcli.families.flux2.family import Flux2
from sdcli.families.flux2.single import parts_of as parts_of_flux2
from sdcli.families.sd.embeddings import words_of
from sdcli.families.sd.family import StableDiffusion
from sdcli.families.sd.single import parts_of
from sdcli.families.sdxl.embeddings import words_of as words_of_xl
from sdcli.families.sdxl.family import StableDiffusionXL
from sdcli.families.sdxl.single import parts_of as parts_of_xl
from sdcli.families.sdxl_refiner.family import StableDiffusionXLRefiner
from sdcli.families.sdxl_refiner.single import parts_of as parts_of_refiner
from sdcli.families.zimage.family import ZImage
from sdcli.families.zimage.single import parts_of as parts_of_zimage

Has = Callable[[str], bool]
"""Whether there is something by the name of a part."""

_FAMILIES: dict[str, Family] = {}
_FINDERS: dict[str, FindParts] = {}
_WORD_FINDERS: dict[str, FindWords] = {}


def register(family: Family, find_parts: FindParts | None = None, find_words: FindWords | None = None) -> None:
    """Add a family, under its name, with what finds its parts in a single file, and words in one, if it has that."""
    _FAMILIES[family.name] = family
    if find_parts is not None:
        _FINDERS[family.name] = find_parts
    if find_words is not None:
        _WORD_FINDERS[family.name] = find_words


def words_in(family: Family, file: WeightFile, parts: Mapping[str, Component]) -> Mapping[str, tuple[Word, ...]]:
    """The words that a file brings to a model, by the part that has them then. Raises SdcliError."""
    find = _WORD_FINDERS.get(family.name)
    if find is None:
        raise SdcliError(f"models like this one take no embeddings, and {echo(file.path)} is given: leave it out")
    return find(file, parts)


def parts_in(
    file: WeightFile, numbers: Numbers, prediction: Prediction | None = None, family: str | None = None
) -> tuple[Family, Found]:
    """The family that has most parts in a single file, and these parts; there may be none.

    Where the `family` is known, as it finds them.
    """
    finders = {family: _FINDERS[family]} if family in _FINDERS else _FINDERS
    found = {name: find(file, numbers, prediction) for name, find in finders.items()}
    name = max(found, key=lambda name: len(found[name].parts))
    return _FAMILIES[name], found[name]


def by_name(name: str) -> Family:
    """The family of that name. Raises KeyError for one that is not in the list."""
    return _FAMILIES[name]


def family_of(model: Model) -> Family:
    """The model's family."""
    return _FAMILIES[model.family]


def recognise(
    has: Has, pipeline: object = None, index: Path | None = None, kind: Callable[[Part], object] = lambda part: None
) -> Family:
    """The family of a model: by the pipeline that its `index` names, else the one of whose parts it `has` most.

    A pipeline may be of several. Of several families it is the one that lacks fewest, and of those with the same parts
    the one whose networks they are: `kind` tells the class of one. Raises SdcliError for a pipeline that no family has.
    """
    families = [*_FAMILIES.values()]
    if pipeline:
        named = [family for family in families if pipeline in family.pipelines]
        if len(named) == 1:
            return named[0]
        if not named:
            what = echo(pipeline) if isinstance(pipeline, str) else "somebody's own pipeline"
            raise SdcliError(
                f"{echo(index)} says that this is {what}: not supported yet; give a {families[0].pipelines[0]}"
            )
        families = named
    there = {family.name: [part for part in family.parts if has(part.name)] for family in families}
    if not any(there.values()):
        return families[0]
    fits = {family.name: (len(there[family.name]), -len(family.parts)) for family in families}
    likely = [family for family in families if fits[family.name] == max(fits.values())]
    if len(likely) == 1:
        return likely[0]
    networks = {name: [part for part in parts if part.stem is not None] for name, parts in there.items()}
    return max(likely, key=lambda family: sum(kind(part) in part.classes for part in networks[family.name]))


def part_options() -> dict[str, str]:
    """Options that name another part in place of a model's own, and the names of these parts."""
    parts = (part for family in _FAMILIES.values() for part in (*family.parts, *family.extras))
    return {part.option: part.name for part in parts if part.option is not None}


def looks_like_a_model(has: Has) -> bool:
    """Whether it has the part that tells a model of some family."""
    return any(part.tells and has(part.name) for family in _FAMILIES.values() for part in family.parts)


register(StableDiffusion(), parts_of, words_of)
register(StableDiffusionXL(), parts_of_xl, words_of_xl)
register(StableDiffusionXLRefiner(), parts_of_refiner, words_of_xl)
register(Flux2(), parts_of_flux2)
register(ZImage(), parts_of_zimage)
