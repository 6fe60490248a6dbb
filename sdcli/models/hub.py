"""The Hub's cache on disk: from the top folder of a model to the snapshot that its main branch names.

Layout: models--ORG--NAME/{refs/main, snapshots/COMMIT/…, blobs/…}, where a snapshot is links to blobs
(https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

from __future__ import annotations

import re
from pathlib import Path

from sdcli.errors import SdcliError, echo
from sdcli.families.registry import looks_like_a_model

SHOWN = 3
"""Folders that a message lists at most."""


def snapshot_in(ref: str, folder: Path) -> tuple[Path, str | None]:
    """The folder of the model that `folder` stands for, and what to say of that; most stand for themselves.

    Raises SdcliError, which lists them, if there are several and nothing says which.
    """
    home = folder.resolve()
    home = home.parent if home.name == "snapshots" else home
    if not (home.name.startswith("models--") and (home / "snapshots").is_dir()):
        return folder, None
    snapshots = folders_in(home / "snapshots")
    main = home / "refs" / "main"
    named = commit_in(main)
    if named is not None and named in snapshots:
        return home / "snapshots" / named, f"{echo(ref)} is a folder of the Hub's cache: its main snapshot, {named[:8]}"
    if named is None and len(snapshots) == 1:
        return home / "snapshots" / snapshots[0], f"{echo(ref)} is a folder of the Hub's cache: its only snapshot"
    what = f"the snapshot that its refs/main names, {echo(named)}, is not there" if named else "it has no refs/main"
    raise SdcliError(f"{echo(ref)} is a folder of the Hub's cache, and {what}: give one of {_listed(snapshots)}")


def model_folders_in(folder: Path) -> str:
    """Folders one level down that may be what was meant, as a list to show; empty if there are none."""
    inner = folder / "hub" if (folder / "hub").is_dir() else folder
    meant = [name for name in folders_in(inner) if name.startswith("models--") or _has_a_model(inner / name)]
    return _listed([str(inner / name) for name in meant]) if meant else ""


def _has_a_model(folder: Path) -> bool:
    return looks_like_a_model(lambda part: (folder / part).is_dir()) or (folder / "model_index.json").is_file()


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in it, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def commit_in(main: Path) -> str | None:
    """The commit that a file of refs/ names, if it says anything that can be a folder's name."""
    if not main.is_file():
        return None
    with main.open("rb") as file:
        named = file.read(256).decode("ascii", "replace").strip()
    return named if re.fullmatch(r"\w[\w.-]*", named, re.ASCII) else None


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(echo, names[:SHOWN])) + more if names else "none"
