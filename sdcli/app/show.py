"""All that can be said of one model without drawing: what it is made of, what it does by itself, what it would take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sdcli.app.asked import Asked, Tell
from sdcli.app.forecast import Forecast, forecast, forecast_report
from sdcli.app.on_disk import files_of
from sdcli.app.tasks import prepare
from sdcli.domain import Component, Model
from sdcli.families.registry import family_of

SCHEMA = "sdcli.model/1"


@dataclass(frozen=True, slots=True)
class Shown:
    """A model, and the forecast of a picture of its own size with its own settings."""

    model: Model
    forecast: Forecast


def show(ref: str, tell: Tell, debug: bool = False) -> Shown:
    """Look at a model. Raises what a run with it would raise, but not that it will not fit."""
    task = prepare(Asked("", seed=0, model=ref), tell, debug)
    return Shown(task.model, forecast(task))


def dtypes_of(part: Component) -> list[str]:
    """The types that its weights are stored in."""
    return sorted({origin.info.dtype for origin in (part.tensors or {}).values()})


def bytes_of(part: Component) -> int:
    """What its weights take on disk."""
    return sum(origin.info.nbytes for origin in {(o.path, o.stored): o for o in (part.tensors or {}).values()}.values())


def model_report(shown: Shown) -> dict[str, Any]:
    """The JSON report of `sdcli models show`."""
    model, request = shown.model, shown.forecast.task.request
    return {
        "schema": SCHEMA,
        "ref": model.ref,
        "path": str(model.path),
        "family": family_of(model).label(model),
        "digest": model.digest,
        "size_bytes": sum(path.stat().st_size for path in files_of(model)),
        "parts": [
            {
                "name": part.name,
                "class": part.class_name,
                "dtypes": dtypes_of(part),
                "weight_bytes": bytes_of(part),
                "files": [str(file.path) for file in part.files],
            }
            for part in model.parts.values()
        ],
        "defaults": {
            "steps": request.steps,
            "guidance": request.guidance,
            "width": request.width,
            "height": request.height,
            "scheduler": model.parts["scheduler"].class_name,
        },
        "notes": list(model.notes),
        "forecast": forecast_report(shown.forecast.task, shown.forecast),
    }
