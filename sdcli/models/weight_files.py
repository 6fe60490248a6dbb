"""Which of the weight files in a component's folder are used.

Names as diffusers and transformers write them: a stem, a variant such as fp16, and the number of a shard, before the
variant in older versions and after it in newer ones.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import SdcliError, echo
from sdcli.models.configs import read_json

_OTHER_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".gguf", ".zip")
_INDEX = re.compile(r"\.safetensors\.index(\.[\w-]+)?\.json$", re.ASCII)
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_VARIANTS = ("", "fp16", "bf16", "fp32", "ema", "non_ema")
"""In the order in which sharded ones are preferred; of whole files fp16 comes first, which is half the reading."""

_FETCHED = ("fp16", "bf16", "", "fp32", "non_ema", "ema")
"""In the order in which they are fetched."""


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files, in order, the variant that they are of, and the first one that is missing."""

    paths: tuple[Path, ...]
    variant: str
    missing: str | None


def find_weights(home: Path, stem: str) -> WeightFiles:
    """The best of the sets of files that lie in `home`: a whole one if there is one, else the nearest to it."""
    choices = _choices(home, [name for name in _names(home) if "-of-" in name or (home / name).is_file()], stem)
    return min(choices, key=_rank, default=WeightFiles((), "", f"{stem}.safetensors"))


def weights_to_fetch(home: Path, names: Iterable[str], stem: str) -> WeightFiles:
    """The set of files to fetch of those that a folder `home` somewhere else has: half precision first."""
    choices = _choices(home, names, stem)
    return min(choices, key=_rank_to_fetch, default=WeightFiles((), "", f"{stem}.safetensors"))


def _choices(home: Path, names: Iterable[str], stem: str) -> list[WeightFiles]:
    """The sets of files, one a variant."""
    name_of = re.compile(
        rf"{re.escape(stem)}(?:\.(?P<variant>[\w-]+?))?(?P<shard>-\d{{5}}-of-\d{{5}})?(?:\.(?P<older>[\w-]+))?\.safetensors",
        re.ASCII,
    )
    sets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in names:
        found = name_of.fullmatch(name)
        if found:
            variant = ".".join(filter(None, (found["variant"], found["older"])))
            every = re.sub(r"-\d{5}-of-", "-*-of-", name) if found["shard"] else name
            sets[variant, every].add(name)
    return [_choice(home, variant, every, found_names) for (variant, every), found_names in sets.items()]


def _choice(home: Path, variant: str, every: str, names: set[str]) -> WeightFiles:
    found = re.search(r"-\*-of-(\d{5})", every)
    needed = [every.replace("*", f"{index:05}") for index in range(1, int(found[1]) + 1)] if found else [every]
    missing = next((name for name in needed if name not in names), None)
    return WeightFiles(tuple(home / name for name in sorted(names)), variant, missing)


def _rank(files: WeightFiles) -> tuple[bool, bool, bool, int, str]:
    variant, whole = files.variant, len(files.paths) == 1 and "-of-" not in files.paths[0].name
    known = _VARIANTS.index(variant) if variant in _VARIANTS else len(_VARIANTS)
    return bool(files.missing), known > 1, not whole, -known if whole and known < 2 else known, files.paths[0].name


def _rank_to_fetch(files: WeightFiles) -> tuple[bool, int, int, str]:
    order = _FETCHED.index(files.variant) if files.variant in _FETCHED else len(_FETCHED)
    return bool(files.missing), order, len(files.paths), files.paths[0].name


def note_of_index(home: Path, files: WeightFiles) -> str | None:
    """What to say of an index beside shards that is damaged or of others: nothing depends on it, each shard is read."""
    shards = {path.name for path in files.paths}
    for name in sorted(_names(home)) if any("-of-" in shard for shard in shards) else ():
        if _INDEX.search(name) and not _lists(home / name, shards):
            return f"{home.name}/{name} is damaged, or of other files: its shards are read without it"
    return None


def _lists(path: Path, shards: set[str]) -> bool:
    """Whether an index is a table of tensors in these shards."""
    try:
        table = read_json(path).get("weight_map")
    except SdcliError:
        return False
    return (
        isinstance(table, dict) and bool(table) and all(isinstance(to, str) and to in shards for to in table.values())
    )


def what_lies_there(home: Path, missing: str) -> str:
    """What there is in place of weights that are missing, and what to do about it; empty if there is nothing."""
    if (home / missing).is_symlink():
        return f"{missing} is a link to a file that is gone"
    names = sorted(name for name in _names(home) if name.lower().endswith(_OTHER_WEIGHTS))
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        return f"{echo(pickles[0])} is a pickle, which is never opened; fetch the .safetensors files, or convert it"
    return f"{home.name} has {echo(names[0])}" if names and "-of-" not in missing else ""


def _names(home: Path) -> list[str]:
    try:
        return os.listdir(home)
    except (FileNotFoundError, NotADirectoryError):
        return []
