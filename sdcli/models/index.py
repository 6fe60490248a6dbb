"""`model_index.json` of a pipeline in diffusers layout: what it is, and which classes its parts have.

A folder without one is as good. What it says is compared with what is known here; nothing in it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from sdcli.errors import SdcliError, echo
from sdcli.models.configs import CLASSES, read_json

INDEX_FILE = "model_index.json"

_PIPELINES = frozenset(
    {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
    }
)
"""Pipelines of the components that are used here, and of no others."""

_LIBRARIES = ("diffusers", "transformers")


def read_index(folder: Path) -> dict[str, str]:
    """The class of each component, if there is an index. Raises SdcliError for a pipeline of another kind."""
    path = folder / INDEX_FILE
    if not os.path.lexists(path):
        return {}
    table = read_json(path)
    kind = table.get("_class_name") or "StableDiffusionPipeline"
    if not isinstance(kind, str) or kind not in _PIPELINES:
        what = echo(kind) if isinstance(kind, str) else "somebody's own pipeline"
        raise SdcliError(f"{echo(path)} says that this is {what}: not supported yet; give a StableDiffusionPipeline")
    if table.get("custom_pipeline") or table.get("auto_map"):
        raise SdcliError(f"{echo(path)} names a pipeline of its own: refused; no code that a model brings is run")
    return {name: _class(path, name, table[name]) for name in CLASSES if name in table}


def _class(path: Path, name: str, entry: object) -> str:
    match entry:
        case [str(library), str(kind)] if library in _LIBRARIES:
            return kind
    raise SdcliError(f"{echo(path)} takes its {echo(name)} from no known library: refused; fetch it again")
