"""Files of textual inversion that a person asks for, and those of a folder whose names are in the prompt."""

from __future__ import annotations

import re
from pathlib import Path

from sdcli.app.asked import Asked
from sdcli.errors import SdcliError, echo

SUFFIX = ".safetensors"
PICKLES = (".pt", ".bin")


def embeddings_of(asked: Asked) -> tuple[str, ...]:
    """Those of options, then those of the folder, by name. Raises SdcliError for one that is there as a pickle only."""
    if asked.embedding_dir is None:
        return asked.embeddings
    folder = Path(asked.embedding_dir)
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (SUFFIX, *PICKLES))
    except OSError as error:
        raise SdcliError(f"cannot read --embedding-dir {echo(folder)}: {error.strerror}; check the path") from error
    meant = [path for path in paths if path.stem and any(_is_in(path.stem, t) for t in (asked.prompt, asked.negative))]
    named = {path.stem.casefold(): path for path in meant if path.suffix.lower() == SUFFIX}
    for path in meant:
        if path.stem.casefold() not in named:
            raise SdcliError(
                f"{echo(path)} is a pickle, which is never opened: give the embedding as {SUFFIX}, or another word"
            )
    given = {Path(one).resolve() for one in asked.embeddings}
    return *asked.embeddings, *(str(path) for path in named.values() if path.resolve() not in given)


def _is_in(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def idle(words: list[str], asked: Asked) -> bool:
    """Whether none of these words is in a prompt."""
    return not any(_is_in(word, text) for word in words for text in (asked.prompt, asked.negative))
