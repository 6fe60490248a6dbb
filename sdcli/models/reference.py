"""From what the user calls a model to a checked folder."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

from sdcli.domain import Model, Sources
from sdcli.errors import BadRequest, LacksFiles, ModelMissing, SdcliError, echo
from sdcli.models.hub import snapshot_in
from sdcli.models.hub_ids import find_in_cache, parse_hub_ref
from sdcli.models.opened import open_model
from sdcli.models.synthetic import SYNTHETIC, Make, find_outlined, find_synthetic

DEMO = "demo"
"""The built-in model. A folder of that name is reached as ./demo."""

FORMS = "demo, a .safetensors file, a folder in diffusers layout, org/name or synthetic:sd15"
"""What names a model."""


def resolve_model(ref: str, make: Make, given: Sources | None = None, outline: bool = False) -> Model:
    """The checked model behind `ref`: `demo`, which is built in, `synthetic:NAME`, made on first use, a path or a name.

    A name is that of a model on the Hub that is in its cache; a path that exists goes before it.

    What was `given` with it comes in place of what the model says. Where an `outline` will do, that alone is made of a
    synthetic model which is not there yet.

    Raises BadRequest for a reference of no known form, ModelMissing when nothing is there, SdcliError when
    what is there is not a whole model.
    """
    given = given or Sources("")
    if ref == DEMO:
        return open_model(ref, replace(given, path=str(Path(__file__).parent / DEMO)))
    if ref.startswith(SYNTHETIC):
        folder, sha256 = find_outlined(ref, make) if outline else find_synthetic(ref, make)
        return open_model(ref, replace(given, path=str(folder)), sha256)
    if not ref.strip() or "\0" in ref:
        raise BadRequest(f"{echo(ref)} is no model's name: give {FORMS}")
    if "://" in ref:
        raise BadRequest(f"{echo(ref)} is an address: sdcli opens models on disk only; give a file or a folder")
    path = Path(ref)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
        return _from_hub(ref, given)
    except OSError as error:
        raise SdcliError(f"cannot open the model {echo(ref)}: {error.strerror}; check the path") from error
    if not stat.S_ISDIR(mode):
        return _noted(open_model(ref, replace(given, path=str(path))), _passed_over(ref))
    try:
        folder, note = snapshot_in(ref, path)
    except OSError as error:
        raise SdcliError(f"cannot read the model {echo(ref)}: {error.strerror}; check its permissions") from error
    return _noted(open_model(ref, replace(given, path=str(folder))), note or _passed_over(ref))


def _from_hub(ref: str, given: Sources) -> Model:
    """The model of that name in the Hub's cache. Raises ModelMissing, which says what fetches it."""
    named = parse_hub_ref(ref)
    if named is None:
        raise ModelMissing(f"no model {echo(ref)} on this disk: give {FORMS}")
    try:
        found = find_in_cache(named)
        if found is None:
            where = "on this disk, nor in the Hub's cache"
            raise ModelMissing(f"no model {echo(ref)} {where}: fetch it with {named.pull_command}, or give a path")
        return _noted(open_model(ref, replace(given, path=str(found[0]))), found[1])
    except LacksFiles as error:
        raise ModelMissing(f"{error}, or fetch the rest with {named.pull_command}") from error
    except OSError as error:
        raise SdcliError(f"cannot read the model {echo(ref)}: {error.strerror}; check its permissions") from error


def _passed_over(ref: str) -> str | None:
    """What to say of a path where a model in the Hub's cache has the same name."""
    named = parse_hub_ref(ref)
    hidden = named is not None and named.top.is_dir()
    return (
        f"{echo(ref)} is a path here: that is taken, not the model of this name in the Hub's cache" if hidden else None
    )


def _noted(model: Model, note: str | None) -> Model:
    return replace(model, notes=(note, *model.notes)) if note else model
