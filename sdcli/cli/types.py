"""Types of options: strict, so that what is not meant is not taken, and each refusal says what to give."""

from __future__ import annotations

import math
import os
import re
import secrets
from typing import Any

import click
from click.shell_completion import CompletionItem

from sdcli.app.asked import SEED_END
from sdcli.app.loras import weight_of
from sdcli.errors import echo, printable
from sdcli.models.samplers import SAMPLERS, SCHEDULES, sampler_named, schedule_named
from sdcli.settings import at_home, config_names
from sdcli.units import parse_size

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


class Size(click.ParamType):
    """Width and height in pixels, as in 768x512."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        sides = re.fullmatch(r"([0-9]{1,30})[xX]([0-9]{1,30})", str(value).strip())
        if sides is None:
            self.fail(f"{echo(value)} is not a size: give width and height, as in 768x512", param, ctx)
        return Side().convert(sides[1], param, ctx), Side().convert(sides[2], param, ctx)


class FiniteNumber(click.ParamType):
    """A number from `least` to `most`, never nan or infinity."""

    name = "number"

    def __init__(self, least: float, most: float = math.inf) -> None:
        self._least, self._most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not (math.isfinite(number) and self._least <= number <= self._most):
            most = f" to {self._most:g}" if math.isfinite(self._most) else " up"
            self.fail(f"{echo(value)} is not a number from {self._least:g}{most}", param, ctx)
        return number


class Margins(click.ParamType):
    """Pixels left, above, right and below, as in 0,0,128,0."""

    name = "left,top,right,bottom"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        sides = re.fullmatch(r"([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5}),([0-9]{1,5})", str(value).replace(" ", ""))
        margins = tuple(map(int, sides.groups())) if sides else ()
        if not any(margins) or any(margin > SIDE_MOST for margin in margins):
            what = f"{echo(value)} are no margins: give pixels left, above, right and below, as in 0,0,128,0"
            self.fail(what, param, ctx)
        return margins


class Seed(click.ParamType):
    """0 to 2^64-1, or `random`, which other programs call -1."""

    name = "seed"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if text in ("random", "-1"):
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


class Bytes(Limit):
    """A size with its unit, and nothing else."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        parse_size(str(value))
        return str(value).strip()


class FilePath(click.ParamType):
    """A path, with ~ as the home folder; whether anything is there is seen by whoever opens it."""

    def __init__(self, name: str = "path") -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return at_home(str(value))


class WeightsFile(FilePath):
    """A file of weights, or where it may be a folder with some; a shell completes those that end so.

    `folder` is the option that names a folder with more of them.
    """

    suffix = ".safetensors"

    def __init__(self, folder: str | None = None) -> None:
        super().__init__()
        self._folder = folder

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        home, _ = os.path.split(incomplete)
        found = [path for path in self._files(home) if path.startswith(incomplete)]
        if self._folder and (folder := ctx.params.get(self._folder)):
            found += [path for path in self._files(folder) if os.path.basename(path).startswith(incomplete)]
        # bash forgets what stands before a kind of path
        return [CompletionItem(incomplete, type="dir"), *map(CompletionItem, dict.fromkeys(found))]

    def _files(self, folder: str) -> list[str]:
        try:
            names = sorted(os.listdir(at_home(folder) or "."))
        except OSError:
            return []
        return [os.path.join(folder, name) for name in names if name.lower().endswith(self.suffix)]


class LoraFile(WeightsFile):
    """A file of LoRA and how much of it, FILE or FILE:WEIGHT: the last colon counts if a number follows it."""

    envvar_list_splitter = ";"

    def __init__(self) -> None:
        super().__init__("lora_dir")
        self.name = "file[:weight]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        path, _, after = str(value).rpartition(":")
        weight = weight_of(after) if path else None
        if not str(value).strip():
            self.fail("an empty name is no file", param, ctx)
        return (at_home(str(value)), 1.0) if weight is None else (at_home(path), weight)


class SamplerName(click.ParamType):
    """Any name of a sampler."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        sampler_named(str(value))
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = [alias for sampler in SAMPLERS for alias in sampler.aliases[:1]]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class ScheduleName(click.ParamType):
    """Any name of a schedule of noise levels."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        schedule_named(str(value))
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(one.name) for one in SCHEDULES if one.name.startswith(incomplete)]


class ProfileName(click.ParamType):
    """A device to pose as; a shell completes them."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)  # it is looked up once it is known that nothing else goes before it

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in config_names("profiles") if name.startswith(incomplete)]


class ModelRef(FilePath):
    """What names a model; a shell completes those on this disk, and paths."""

    envvar_list_splitter = ";"

    def __init__(self) -> None:
        super().__init__("text")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from sdcli.app.on_disk import refs_on_disk

        named = [CompletionItem(ref) for ref in refs_on_disk() if ref.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *named]  # bash forgets what stands before a kind of path
