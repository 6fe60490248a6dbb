"""Weights of synthetic models, made when a picture that fits is about to be drawn, and no sooner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sdcli.app.forecast import forecast
from sdcli.app.record import Task
from sdcli.host.making import make_synthetic
from sdcli.messages import Progress
from sdcli.models.reference import resolve_model
from sdcli.models.stamps import stamps_of
from sdcli.models.synthetic import is_outline

ShowMaking = Callable[[str], Callable[[Progress], None]]
"""Shows how far the making of the named model is."""


def with_weights(task: Task, show_making: ShowMaking) -> Task:
    """The task with a model that has its numbers: of an outline they are made now.

    Raises WillNotFit, before anything is made, for a task that its model's shapes and types tell will not fit.
    """
    if not is_outline(task.model):
        return task
    result = forecast(task)
    if result.refusal is not None and not result.unsure:
        raise result.refusal

    def make(name: str, folder: Path) -> None:
        make_synthetic(name, folder, show_making(task.model.ref), task.debug)

    model = resolve_model(task.model.ref, make, task.model.sources)
    stamps_of(model)  # as its files are now
    return replace(task, model=model)
