"""Types of options: strict, so that what is not meant is not taken, and each refusal says what to give."""

from __future__ import annotations

import math
import re
import secrets
from typing import Any

import click

from sdcli.errors import echo, printable
from sdcli.units import parse_size

SEED_END = 2**64
SIDE_LEAST, SIDE_MOST, SIDE_STEP = 64, 8192, 8


class WholeNumber(click.ParamType):
    """Decimal digits only: not 1e3, 0x200 or 512.0."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
            self.fail(f"{echo(value)} is not a whole number from {self._least} to {self._most}", param, ctx)
        number = int(text)
        if not self._least <= number <= self._most:
            self.fail(f"{printable(text)} is not from {self._least} to {self._most}", param, ctx)
        return number


class Side(WholeNumber):
    """A side of the picture in pixels: a multiple of 8."""

    name = "pixels"

    def __init__(self) -> None:
        super().__init__(SIDE_LEAST, SIDE_MOST)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        side = super().convert(value, param, ctx)
        if side % SIDE_STEP:
            below = side - side % SIDE_STEP
            self.fail(f"{side} is not a multiple of {SIDE_STEP}: give {below} or {below + SIDE_STEP}", param, ctx)
        return side


class FiniteNumber(click.ParamType):
    """A number from `least` to `most`, never nan or infinity."""

    name = "number"

    def __init__(self, least: float, most: float = math.inf) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and self._least <= number <= self._most):
            most = f" to {self._most:g}" if math.isfinite(self._most) else " up"
            self.fail(f"{echo(value)} is not a number from {self._least:g}{most}", param, ctx)
        return number


class Seed(click.ParamType):
    """0 to 2^64-1, or `random`."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if text == "random":
            return secrets.randbelow(SEED_END - 2**32)
        if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) >= SEED_END:
            self.fail(f"{echo(value)} is not a seed: give 0 to {SEED_END - 1}, or random", param, ctx)
        return int(text)


class Limit(click.ParamType):
    """A size with its unit, `auto` or `none`; checked here, decided once the device is known."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if text not in ("auto", "none"):
            parse_size(text)
        return text


class Text(click.ParamType):
    """A prompt: at most 64 KiB, no NUL byte."""

    name = "text"
    limit_bytes = 64 * 1024

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            self.fail("the text is not valid UTF-8", param, ctx)
        if size > self.limit_bytes:
            self.fail(f"the text has {size} bytes: give at most {self.limit_bytes}", param, ctx)
        if "\0" in text:
            self.fail("the text has a NUL byte: take it out", param, ctx)
        return text


class PromptFile(click.ParamType):
    """A file with the prompt, or `-` for standard input; never read further than a prompt may be long."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            with click.open_file(str(value), "rb") as file:
                raw: bytes = file.read(Text.limit_bytes + 1)
        except OSError as error:
            self.fail(f"cannot read {echo(value)}: {error.strerror}", param, ctx)
        if len(raw) > Text.limit_bytes:
            self.fail(f"{echo(value)} is longer than a prompt may be: {Text.limit_bytes} bytes", param, ctx)
        try:
            text = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            self.fail(f"{echo(value)} is not valid UTF-8", param, ctx)
        return Text().convert(text, param, ctx)
