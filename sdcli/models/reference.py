"""From what the user calls a model to a checked folder."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdcli.domain import Model, Sources
from sdcli.errors import BadRequest, ModelMissing, SdcliError, echo
from sdcli.models.hub import snapshot_in
from sdcli.models.opened import open_model
from sdcli.models.synthetic import SYNTHETIC, find_synthetic

DEMO = "demo"
"""The built-in model. A folder of that name is reached as ./demo."""

FORMS = "demo, a .safetensors file, a folder in diffusers layout or synthetic:sd15"
"""What names a model."""

MakeSynthetic = Callable[[str, Path], None]
"""Makes the named synthetic model in a folder: the host lends a worker for that."""


def resolve_model(ref: str, make: MakeSynthetic, given: Sources | None = None) -> Model:
    """The checked model behind `ref`: `demo`, which is built in, `synthetic:NAME`, made on first use, or a path.

    What was `given` with it comes in place of what the model says.

    Raises BadRequest for a reference of no known form, ModelMissing when nothing is there, SdcliError when
    what is there is not a whole model.
    """
    given = given or Sources("")
    if ref == DEMO:
        return open_model(ref, replace(given, path=str(Path(__file__).parent / DEMO)))
    if ref.startswith(SYNTHETIC):
        folder, sha256 = find_synthetic(ref, make)
        return open_model(ref, replace(given, path=str(folder)), sha256)
    if not ref.strip() or "\0" in ref:
        raise BadRequest(f"{echo(ref)} is no model's name: give {FORMS}")
    if "://" in ref:
        raise BadRequest(f"{echo(ref)} is an address: sdcli opens models on disk only; give a file or a folder")
    path = Path(ref)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
        raise ModelMissing(f"no model {echo(ref)} on this disk: give {FORMS}") from None
    except OSError as error:
        raise SdcliError(f"cannot open the model {echo(ref)}: {error.strerror}; check the path") from error
    if not stat.S_ISDIR(mode):
        return open_model(ref, replace(given, path=str(path)))
    try:
        folder, note = snapshot_in(ref, path)
    except OSError as error:
        raise SdcliError(f"cannot read the model {echo(ref)}: {error.strerror}; check its permissions") from error
    model = open_model(ref, replace(given, path=str(folder)))
    return replace(model, notes=(note, *model.notes)) if note else model
