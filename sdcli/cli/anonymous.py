"""Text without what tells whose machine it is from: the home folder, the user's name in a path, the machine's name."""

from __future__ import annotations

import getpass
import os
import platform
import re
from functools import lru_cache
from pathlib import Path


def anonymous(text: str) -> str:
    """The home folder as ~, names in paths as USER and HOST, and the machine's name wherever it is a word."""
    home, user, host = _names()
    for folder in home:
        text = text.replace(folder, "~")
    if user:
        text = re.sub(rf"(?<=[/\\]){re.escape(user)}(?=$|[/\\'\s:;,])", "USER", text)
    if host:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)
    return text


@lru_cache(maxsize=1)
def _names() -> tuple[tuple[str, ...], str, str]:
    """Ways to write the home folder, the longest first; the user; the machine."""
    homes = {os.environ.get("HOME", "").rstrip("/\\"), os.environ.get("USERPROFILE", "").rstrip("/\\")}
    for find in (Path.home, lambda: Path.home().resolve()):
        try:
            homes.add(str(find()))
        except (OSError, RuntimeError):
            continue
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = ""
    found = sorted((home for home in homes if len(home) > 1), key=len, reverse=True)
    return tuple(found), user, platform.node()
