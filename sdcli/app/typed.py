"""Dataclasses to plain JSON values and back: what is read is believed field by field, as far as its type says so.

Every field goes along by itself, also one that is new. Bytes lie in files of their own.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sdcli.errors import SdcliError, echo

Of = TypeVar("Of")

Readers = Mapping[type, Callable[[Any], Any]]
"""What makes a value of a type of which the plain one is no dataclass of its fields; it raises Untrue."""

Writers = Mapping[type, Callable[[str, Any], Any]]
"""The other way round, by the name of the field."""


class Untrue(SdcliError):
    """A value that is not of its type."""


def to_plain(value: Any, writers: Writers, name: str = "") -> Any:
    """`value` as JSON has it."""
    if type(value) in writers:
        return writers[type(value)](name, value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        under = f"{name}." if name else ""
        return {f.name: to_plain(getattr(value, f.name), writers, under + f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(one, writers, f"{name}.{key}") for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(one, writers, name) for one in value]
    return value


def from_plain(kind: type[Of], plain: Any, readers: Readers, names: Mapping[str, Any] | None = None) -> Of:
    """A dataclass of that kind. Raises Untrue for what is none. `names` has types that annotations alone import."""
    made: Of = _Reader(readers, dict(names or {})).read(kind, plain, "")
    return made


class _Reader:
    def __init__(self, readers: Readers, names: dict[str, Any]) -> None:
        self._readers, self._names = readers, names

    def read(self, kind: Any, plain: Any, where: str) -> Any:
        """A value of the kind."""
        if kind in self._readers:
            return self._readers[kind](plain)
        if dataclasses.is_dataclass(kind):
            return self._dataclass(kind, plain, where)
        if get_origin(kind) is not None:
            return self._generic(get_origin(kind), get_args(kind), plain, where)
        return _simple(kind, plain, where)

    def _generic(self, origin: Any, kinds: tuple[Any, ...], plain: Any, where: str) -> Any:
        """An optional value, one of several, a tuple, or a mapping from names."""
        if origin in (Union, types.UnionType):
            (inner,) = [one for one in kinds if one is not type(None)]
            return None if plain is None else self.read(inner, plain, where)
        if origin is Literal:
            return _required(any(type(plain) is type(one) and plain == one for one in kinds), plain, where)
        if origin is tuple:
            return self._tuple(kinds, plain, where)
        if not issubclass(origin, Mapping):
            raise TypeError(f"{where} is of {origin}, which nothing reads")
        _required(isinstance(plain, dict), plain, where)
        return {key: self.read(kinds[1], value, f"{where}.{key}") for key, value in plain.items()}

    def _dataclass(self, kind: Any, plain: Any, where: str) -> Any:
        _required(isinstance(plain, dict), plain, where)
        fields, hints = {f.name: f for f in dataclasses.fields(kind)}, get_type_hints(kind, localns=self._names)
        unknown = sorted(plain.keys() - fields.keys())
        if unknown:
            raise Untrue(f"{echo(_under(where, unknown[0]))} is not known")
        lacking = [name for name, f in fields.items() if name not in plain and _is_needed(f)]
        if lacking:
            raise Untrue(f"{echo(_under(where, lacking[0]))} is missing")
        return kind(**{name: self.read(hints[name], value, _under(where, name)) for name, value in plain.items()})

    def _tuple(self, kinds: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
        _required(isinstance(plain, list), plain, where)
        if kinds[1:] == (Ellipsis,):
            kinds = (kinds[0],) * len(plain)
        _required(len(kinds) == len(plain), plain, where)
        return tuple(self.read(kind, one, where) for kind, one in zip(kinds, plain, strict=True))


def _simple(kind: Any, plain: Any, where: str) -> Any:
    if kind is float:
        number = isinstance(plain, (int, float)) and not isinstance(plain, bool) and abs(plain) < 1e300
        return float(_required(number and math.isfinite(plain), plain, where))
    if kind not in (str, int, bool):
        raise TypeError(f"{where} is of {kind}, which nothing reads")
    return _required(type(plain) is kind, plain, where)


def _required(holds: bool, plain: Any, where: str) -> Any:
    if not holds:
        raise Untrue(f"{echo(where)} cannot be {echo(plain)}")
    return plain


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _under(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
