"""Networks in one file: which it has, where each weight lies, and what they are, told from names and shapes alone.

No weight is moved. One that a file has fused with others is some of its rows there, and one of eight bits has its scale
beside it (domain.Origin).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sdcli.domain import Component, Origin, TensorInfo, WeightFile
from sdcli.errors import SdcliError, echo
from sdcli.families.contract import FLOAT8, Part

Names = Mapping[str, TensorInfo]
"""The tensors of a network, by the names that they have without its prefix."""

Shapes = Mapping[str, tuple[int, ...]]


class Twice(ValueError):
    """A weight that a file has under two names, which are the arguments."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A weight's place in a file: `share` is (which, of how many) equal parts of a fused one. A `turned` one has rows
    where its layer has columns; of a `swapped` one the second half of the rows comes first."""

    stored: str
    share: tuple[int, int] | None = None
    turned: bool = False
    swapped: bool = False


def each_once(pairs: Iterable[tuple[str, Piece]]) -> dict[str, Piece]:
    """Where each weight lies, from pairs of its name and its place. Raises Twice for one that has two."""
    pieces: dict[str, Piece] = {}
    for today, piece in pairs:
        if today in pieces:
            raise Twice(pieces[today].stored, piece.stored)
        pieces[today] = piece
    return pieces


def as_they_are(names: Names) -> dict[str, Piece]:
    """Of a network whose tensors have the class's own names."""
    return {name: Piece(name) for name in names}


@dataclass(frozen=True, slots=True)
class Search:
    """How to find a part in a file: the `sign` matches names that tell that it is there, and under which prefix its
    tensors are. The first that is there; a file of one network alone has none, if that `is_alone`.

    `pieces` gives the class's own names, and `describe` the config, from shapes by these names and from the file's.
    """

    part: Part
    sign: re.Pattern[str]
    prefixes: tuple[str, ...]
    pieces: Callable[[Names], dict[str, Piece]]
    describe: Callable[[Shapes, Names], dict[str, Any]]
    is_alone: Callable[[Iterable[str]], bool] = lambda names: True
    respelled: Callable[[str, str], str] = lambda prefix, name: name
    """The name of a tensor under this prefix, where a program has changed it."""


def networks_in(file: WeightFile, searches: Iterable[Search]) -> dict[str, Component]:
    """The networks that a file has, by their parts' names. Raises SdcliError for types that are not read."""
    found: dict[str, Component] = {}
    for search in searches:
        part, stored = search.part, _network(file, search)
        if stored is None:
            continue
        names, to_file = stored
        try:
            every = search.pieces(names)
        except Twice as error:
            both = " and as ".join(echo(to_file[name]) for name in error.args)
            raise SdcliError(f"{echo(file.path)} has one tensor twice, as {both}: fetch it again") from error
        pieces = {today: piece for today, piece in every.items() if not part.unused.fullmatch(today)}
        origins = _origins(part, file, pieces, to_file)
        shapes = {name: origin.shape for name, origin in origins.items()}
        try:
            config = search.describe(shapes, names)
        except KeyError as error:
            raise SdcliError(
                f"the {part.name} in {echo(file.path)} lacks {echo(error.args[0])}: fetch it again"
            ) from error
        except (IndexError, ValueError, ZeroDivisionError) as error:
            raise SdcliError(
                f"the {part.name} in {echo(file.path)} has tensors of shapes that no {part.name} has: fetch it again"
            ) from error
        found[part.name] = Component(
            part.name, part.default_class or next(iter(part.classes)), config, file.path, (file,), origins,
            config_name="", schema=part.schema,
        )  # fmt: skip
    return found


def _network(file: WeightFile, search: Search) -> tuple[Names, Mapping[str, str]] | None:
    """The tensors of a network by their names without its prefix, and from those to their names in the file."""
    for prefix in search.prefixes:
        to_file = {
            search.respelled(prefix, name.removeprefix(prefix)): name
            for name in file.tensors
            if name.startswith(prefix)
        }
        if any(map(search.sign.match, to_file)) and (prefix or search.is_alone(to_file)):
            return {name: file.tensors[stored] for name, stored in to_file.items()}, to_file
    return None


_SCALES = (".scale_weight", ".weight_scale")
_NOT_WEIGHTS = re.compile(
    r".*\.(scale_weight|weight_scale|scale_input|input_scale|comfy_quant)|(.*\.)?scaled_fp8|.*num_batches_tracked"
)


def _origins(
    part: Part, file: WeightFile, pieces: Mapping[str, Piece], to_file: Mapping[str, str]
) -> dict[str, Origin]:
    """Where each weight lies. Raises SdcliError for one of a type that is not read."""
    origins = {}
    for today, piece in pieces.items():
        if _NOT_WEIGHTS.fullmatch(piece.stored):
            continue
        stored = to_file[piece.stored]
        info = file.tensors[stored]
        if info.dtype not in part.dtypes:
            raise SdcliError(
                f"{echo(file.path)}: tensor {echo(stored)} is {info.dtype}; weights may be F32, BF16, F16 or F8"
            )
        rows = None
        if piece.share is not None and info.shape:
            which, many = piece.share
            rows = (which * info.shape[0] // many, (which + 1) * info.shape[0] // many)
        scale = _scale(file, stored, info)
        origins[today] = Origin(file.path, stored, info, rows, scale, piece.turned, piece.swapped)
    return origins


def _scale(file: WeightFile, stored: str, info: TensorInfo) -> str | None:
    """The tensor of one number that a weight of eight bits is to be multiplied by."""
    home, _, leaf = stored.rpartition(".")
    if info.dtype not in FLOAT8 or leaf != "weight":
        return None
    scale = next((home + name for name in _SCALES if home + name in file.tensors), None)
    if scale is not None and (file.tensors[scale].numel != 1 or file.tensors[scale].dtype != "F32"):
        raise SdcliError(f"{echo(file.path)}: {echo(scale)} is not one number: only one scale a tensor is read")
    return scale


def levels_of(names: Iterable[str], home: str) -> range:
    """The numbers of what is below this name: levels, layers."""
    found = (re.match(re.escape(home) + r"\.(\d{1,3})\.", name) for name in names)
    return range(1 + max((int(one[1]) for one in found if one), default=-1))
