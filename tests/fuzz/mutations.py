"""Inputs made of others: bytes changed anywhere, and JSON changed where it stays JSON, so that deep checks are reached.

Everything comes of one random generator, so that a seed gives the same inputs again.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

BYTES_MOST = 2**16
"""Of an input."""

_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**47,
    2**48,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS,
    *(-one for one in _NUMBERS[3:]),
    0.5,
    -0.0,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    None,
    True,
    False,
    "",
    "x",
    "a" * 300,
    "\0",
    "\x1b[2J",
    "\u202e",
    "\ud800",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "os.system",
    "F16",
    "F8_E4M3",
    "BOOL",
    "__class__",
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0] * 40,
    {"a": {"b": {"c": 1}}},
)
_TEXTS = (
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    "((",
    "BREAK",
    " AND ",
    "<lora:",
    ">",
    "1.1",
    "1e999",
    "-1",
    "nan",
    "inf",
    "٣",
    "²",
    "\n",
    "\r",
    "\0",
    "\ufeff",
    "\u202e",
    "\ud800",
    "🦊",
    "--",
    "--size 64x64",
    "'",
    '"',
    "Steps: 20",
    ", Seed: 1",
    "%",
    "{",
    "}",
    "$HOME",
    "~",
    "..",
    "/",
    "GiB",
    "0x10",
    "_",
    "+",
    "\x1b[31m",
)
_WORDS = tuple(
    one.to_bytes(size, order)
    for one in (0, 1, 2**7, 2**15, 2**31, 2**32 - 1, 2**63)
    for size in (4, 8)
    for order in ("little", "big")
    if one < 256**size
)


def mutated(data: bytes, structure: str, random: Random, others: list[bytes]) -> bytes:
    """Another input, near `data`; pieces of the `others` may get into it."""
    if structure == "header" and random.random() < 0.7:
        length = int.from_bytes(data[:8], "little")
        changed = _json(data[8 : 8 + length], random)
        if changed is not None:
            return (len(changed).to_bytes(8, "little") + changed + data[8 + length :])[:BYTES_MOST]
    if structure == "config" and random.random() < 0.85:
        changed = _json(data[1:], random)
        if changed is not None:
            return (data[:1] + changed)[:BYTES_MOST]
    if structure == "json" and random.random() < 0.85:
        changed = _json(data, random)
        if changed is not None:
            return changed[:BYTES_MOST]
    if structure == "text" and random.random() < 0.7:
        return _text(data, random)[:BYTES_MOST]
    return _bytes(data, random, others)[:BYTES_MOST]


def _json(raw: bytes, random: Random) -> bytes | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        value = _changed(value, random, 0)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    if random.random() < 0.03:
        text = "[" * random.choice((50, 5000)) + text
    return text.encode("utf-8", "surrogatepass")


def _changed(value: Any, random: Random, depth: int) -> Any:
    """The value with something inside of it changed."""
    if isinstance(value, (dict, list)) and value and random.random() < 0.9:
        key = random.choice([*value] if isinstance(value, dict) else range(len(value)))
        action = random.random()
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        if action < 0.72:
            copy[key] = _changed(copy[key], random, depth + 1)
        elif action < 0.8:
            del copy[key]
        elif action < 0.9 and isinstance(copy, dict):
            copy[_key(key, random)] = copy.pop(key) if random.random() < 0.5 else random.choice(_VALUES)
        elif action < 0.9:
            copy.insert(key, random.choice((copy[key], random.choice(_VALUES))))
        else:
            other = random.choice([*value] if isinstance(value, dict) else range(len(value)))
            copy[key], copy[other] = copy[other], copy[key]
        return copy
    if isinstance(value, (int, float)) and random.random() < 0.5:
        return value + random.choice((-8, -1, 1, 8)) if abs(value) < 1e300 else 0
    if isinstance(value, str) and value and random.random() < 0.4:
        return _text(value.encode("utf-8", "surrogatepass"), random).decode("utf-8", "surrogatepass")
    return random.choice(_VALUES)


def _key(key: Any, random: Random) -> str:
    return random.choice(
        (f"{key}x", str(key)[1:], "", "__metadata__", "_class_name", f"{key}.weight", "\ud800", "alpha")
    )


def _text(raw: bytes, random: Random) -> bytes:
    text = raw.decode("utf-8", "replace")
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randint(0, len(text))
        to = min(len(text), at + random.choice((0, 0, 1, 3, 12)))
        piece = random.choice(_TEXTS) * random.choice((1, 1, 1, 2, 50))
        text = text[:at] + random.choice((piece, piece, "", text[to : to + 20])) + text[to:]
    return text.encode("utf-8", "surrogatepass")


def _bytes(data: bytes, random: Random, others: list[bytes]) -> bytes:
    raw = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = random.randint(0, len(raw))
        action = random.randrange(8)
        if action == 0:
            raw[at:] = b""
        elif action == 1:
            raw[at:at] = random.randbytes(random.choice((1, 2, 4, 16)))
        elif action == 2:
            raw[at : at + random.choice((1, 2, 4, 64))] = b""
        elif action == 3:
            word = random.choice(_WORDS)
            raw[at : at + len(word)] = word
        elif action == 4:
            other = random.choice(others)
            begin = random.randint(0, len(other))
            raw[at:at] = other[begin : begin + random.choice((4, 64, 1024))]
        elif action == 5:
            raw[at:at] = raw[at : at + 32] * random.choice((1, 2, 40))
        elif at < len(raw):
            raw[at] ^= 1 << random.randrange(8)
    return bytes(raw)
