"""A worker that makes a synthetic model: it writes files and computes nothing, so that nobody need watch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdcli.host.worker import Worker
from sdcli.messages import Finished, Progress, Start, Synthesize
from sdcli.models.synthetic import family_of_configs
from sdcli.settings import read_config


def make_synthetic(
    name: str, folder: Path, show: Callable[[Progress], None], debug: bool = False, outline: bool = False
) -> None:
    """Have a worker make the synthetic model `name` in `folder`, or its `outline` alone."""
    family = family_of_configs(read_config("models", name))
    with Worker(family.network, debug) as worker:
        worker.send(Start("cpu", None))
        worker.send(Synthesize(name, str(folder), outline))
        for message in worker.messages():
            if isinstance(message, Progress):
                show(message)
            elif isinstance(message, Finished):
                return
        raise worker.end()
