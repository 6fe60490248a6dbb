"""Types of options that are prompts: as text, and from a file or a pipe."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
import time
from typing import Any

import click

from sdcli.errors import SdcliError, echo
from sdcli.settings import at_home


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
        text = self.text(value, param, ctx).lstrip("\ufeff")
        lines = re.split(r"\r\n|\n|\r", text)  # a prompt may have other characters that break lines
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
