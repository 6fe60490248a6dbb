"""Names of models on the Hub, and where each lies in its cache: read as files, without huggingface_hub, which is large.

Layout: models--ORG--NAME/{refs/main, snapshots/COMMIT/…, blobs/…}, where a snapshot is links to blobs
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdcli.errors import SdcliError, echo
from sdcli.models.hub import commit_in, folders_in
from sdcli.settings import at_home, home_cache

REPO_LIMIT = 96
"""Characters of an id that the Hub allows."""

COMMIT = re.compile(r"[0-9a-f]{40}")

TOKENIZER_FILE = "tokenizer.json"
"""A whole tokenizer."""

_PREFIX = re.compile(r"[0-9a-f]{7,40}")
_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_REF = re.compile(rf"(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_WORD}))?(?:/(?P<file>[^@\\]+))?", re.ASCII)
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".json", ".gguf", ".zip")
"""Ends of names that are somebody's file rather than a repository of the Hub."""


@dataclass(frozen=True, slots=True)
class HubRef:
    """A model on the Hub: `org/name`, at a commit, tag or branch if one is named, and of it one file."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f"/{self.file}" if self.file else "")

    @property
    def pull_command(self) -> str:
        """What fetches it."""
        return f"sdcli models pull {self}"

    @property
    def top(self) -> Path:
        """Its folder in the cache, whether it is there or not."""
        return hub_cache() / f"models--{self.repo.replace('/', '--')}"

    @property
    def locks(self) -> Path:
        """The folder of locks that the Hub's programs hold on it."""
        return hub_cache() / ".locks" / self.top.name


def hub_cache() -> Path:
    """The folder of the Hub's cache, by the environment, as huggingface_hub finds it."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(name):
            return Path(os.path.expandvars(at_home(named)))
    named = os.environ.get("HF_HOME")
    home = Path(os.path.expandvars(at_home(named))) if named else home_cache() / "huggingface"
    return home / "hub"


def parse_hub_ref(text: str) -> HubRef | None:
    """`org/name[@revision][/file.safetensors]`, or a tokenizer's file; None for a text that is not of this form."""
    found = _REF.fullmatch(text)
    if found is None or len(found["repo"]) > REPO_LIMIT or "--" in found["repo"] or ".." in text:
        return None
    if found["repo"].lower().endswith(_FILES) or (found["file"] and not _is_pulled(found["file"])):
        return None
    return HubRef(found["repo"], found["revision"], found["file"])


def _is_pulled(file: str) -> bool:
    return file.endswith(".safetensors") or f"/{file}".endswith(f"/{TOKENIZER_FILE}")


def find_in_cache(ref: HubRef) -> tuple[Path, str] | None:
    """The snapshot in the cache that `ref` names, or the file in it, and what to say; None if there is none.

    Without a revision it is the snapshot that refs/main names, else the only one.
    """
    commit = _commit_of(ref)
    if commit is None:
        return None
    snapshot = ref.top / "snapshots" / commit
    note = f"{ref.repo}: the snapshot {commit[:8]} in the Hub's cache"
    file = ref.file or _only_file(snapshot)
    if file is None:
        return snapshot, note
    return (snapshot / file, f"{note}, of it {echo(file)}") if (snapshot / file).is_file() else None


def _commit_of(ref: HubRef) -> str | None:
    try:
        snapshots = folders_in(ref.top / "snapshots")
        named = commit_in(ref.top / "refs" / (ref.revision or "main"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if named in snapshots:
        return named
    if ref.revision is None:
        return snapshots[0] if named is None and len(snapshots) == 1 else None
    begin = [commit for commit in snapshots if _PREFIX.fullmatch(ref.revision) and commit.startswith(ref.revision)]
    return begin[0] if len(begin) == 1 else None


def _only_file(snapshot: Path) -> str | None:
    """The one .safetensors file of a snapshot that has no folders: a model in one file."""
    with os.scandir(snapshot) as entries:
        found = list(entries)
    files = [entry.name for entry in found if entry.name.endswith(".safetensors")]
    return files[0] if len(files) == 1 and not any(entry.is_dir() for entry in found) else None


def cached_refs() -> Iterator[HubRef]:
    """Every model in the cache, sorted: one with several snapshots a commit each, beside the one that main names."""
    try:
        tops = [name for name in folders_in(hub_cache()) if name.startswith("models--")]
    except (OSError, SdcliError):
        return
    for name in tops:
        ref = parse_hub_ref(name.removeprefix("models--").replace("--", "/"))
        if ref is not None:
            yield from _refs_of(ref)


def _refs_of(ref: HubRef) -> Iterator[HubRef]:
    try:
        snapshots = folders_in(ref.top / "snapshots")
    except OSError:
        return
    main = _commit_of(ref)
    if main is not None:
        yield ref
    for commit in snapshots:
        if commit != main and COMMIT.fullmatch(commit):
            yield HubRef(ref.repo, commit)
