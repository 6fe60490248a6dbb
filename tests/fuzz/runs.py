"""A run's folder as an ended run leaves it, without a run: what is in its files, to begin with."""

from __future__ import annotations

import json
from pathlib import Path

from sdcli.app.record import RunRecord, Task, Wanted
from sdcli.app.run_file import run_file_of
from sdcli.app.runs import LOCK, RUN_FILE
from sdcli.domain import Request
from sdcli.images.write import Destination
from sdcli.models.opened import open_model
from sdcli.plan.ceiling import Ceiling
from tests.fuzz import seeds
from tests.laid_out import Shapes, laid_out

REQUEST = Request("a fox", "ugly", 64, 64, 4, 7.5, 1, 2, strength=0.5)


def _record() -> RunRecord:
    task = Task(
        open_model("demo", seeds.DEMO), REQUEST, "cpu", "fp32", Ceiling(2**31, "asked for"), pixels=bytes(64 * 64 * 3)
    )
    wanted = Wanted(Destination("outputs", (), ".png", force=False, made=True), keep_text=True, working_folder="/")
    return RunRecord(task, wanted=wanted, device="x")


def write_run(home: Path) -> Path:
    """The folder."""
    home.mkdir(mode=0o700, parents=True)
    table, blobs = run_file_of(_record())
    (home / RUN_FILE).write_text(json.dumps(table))
    (home / LOCK).write_bytes(b"")
    for name, data in blobs.items():
        (home / name).write_bytes(data)
    return home


def jobs() -> list[bytes]:
    return [json.dumps(run_file_of(_record())[0]).encode()]


def checkpoints() -> list[bytes]:
    """As engine/checkpoint.py makes them, behind their digests."""
    state = json.dumps([0, 2, 0, {"step": 2, "outputs": {"length": 1}}]).encode()
    shapes: Shapes = {"latents": ("F32", [1, 4, 8, 8]), "generator": ("U8", [16]), "plain": ("U8", [len(state)])}
    blob = laid_out(shapes, None, bytes(1024 + 16) + state)
    return seeds.sealed(blob, blob[:100], b"")
