"""Types of options: strict, so that what is not meant is not taken, and each refusal says what to give."""

from __future__ import annotations

import codecs
import errno
import math
import os
import re
import secrets
import stat
import sys
import time
from typing import Any

import click
from click.shell_completion import CompletionItem

from sdcli.app.asked import SEED_END
from sdcli.app.loras import weight_of
from sdcli.errors import SdcliError, echo, printable
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


class Text(click.ParamType):
    """A prompt: at most 64 KiB, no NUL byte; a byte order mark before it is none of it."""

    name = "text"
    limit_bytes = 64 * 1024

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).lstrip("\ufeff")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            self.fail("the text is not valid UTF-8", param, ctx)
        if size > self.limit_bytes:
            self.fail(f"the text has {size} bytes: give at most {self.limit_bytes}", param, ctx)
        if "\0" in text:
            self.fail("the text has a NUL byte: take it out", param, ctx)
        return text


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


class PromptFile(click.ParamType):
    """A file or a pipe with the prompt, or `-` for standard input; never read further than a prompt may be long."""

    name = "file"
    limit_bytes = Text.limit_bytes
    what = "a prompt"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Text().convert(self.text(value, param, ctx), param, ctx)

    def text(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """All of it, without the last line's end."""
        path, most_bytes = at_home(str(value)), self.limit_bytes + 1
        try:
            raw = sys.stdin.buffer.read(most_bytes) if path == "-" else _read_some(path, most_bytes)
        except ValueError as error:
            self.fail(f"cannot read {echo(path)}: {error}", param, ctx)
        except OSError as error:
            if error.errno in _NO_FILES:
                self.fail(f"cannot read {echo(path)}: {error.strerror}", param, ctx)
            raise SdcliError(f"cannot read the prompt file {echo(path)}: {error.strerror}") from error
        if raw is None:
            self.fail(f"{echo(path)} is a pipe that nobody writes to: give a file, or - for stdin", param, ctx)
        if len(raw) >= most_bytes:
            self.fail(f"{echo(path)} is longer than {self.what} may be: {self.limit_bytes} bytes", param, ctx)
        marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes files
        try:
            return raw.decode("utf-16" if marked else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            self.fail(f"{echo(path)} is not valid UTF-8", param, ctx)


class PromptLines(PromptFile):
    """A file with a prompt a line, perhaps with options after it; empty lines and those that begin with # are none."""

    limit_bytes = 1024 * 1024
    what = "a list of prompts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple) or (ctx is not None and ctx.obj is LINE):
            return ()  # of a line of it
        lines = self.text(value, param, ctx).lstrip("\ufeff").splitlines()
        found = [(at, line.strip()) for at, line in enumerate(lines, start=1) if line.strip()[:1] not in ("", "#")]
        if not found:
            self.fail(f"{echo(value)} has no prompts", param, ctx)
        return tuple(found)


LINE = object()
"""What the context of a line of prompts is known by."""


_NO_FILES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""What the system says of a path that names no file."""

WRITER_PATIENCE_S = 2.0
"""How long a pipe may be without a writer before it is given up: a shell may start the two in any order."""


def _read_some(path: str, most_bytes: int) -> bytes | None:
    """The first `most_bytes` of a file or a pipe, None of a pipe without a writer. Raises OSError and ValueError."""
    # Without O_NONBLOCK a pipe is opened when somebody else opens its other end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb", buffering=0) as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return file.read(most_bytes)
        if not stat.S_ISFIFO(mode):
            raise ValueError("it is neither a file nor a pipe")
        raw, give_up = b"", time.monotonic() + WRITER_PATIENCE_S
        while len(raw) < most_bytes:
            more = file.read(most_bytes - len(raw))
            if more:
                raw += more
            elif more is None:  # there is a writer, who has not written yet
                time.sleep(0.01)
            elif raw:
                break
            elif time.monotonic() > give_up:
                return None
            else:
                time.sleep(0.01)
        return raw
