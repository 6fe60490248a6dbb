"""The peaks of a report: what somebody else counts, and what shows where a component is not freed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from sdcli.units import MIB
from tests.cli.conftest import clean_environment
from tests.conftest import SDCLI
from tests.folders import made
from tests.full.outside import watch

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the outside view reads /proc")

WORDY = {"text_encoder": {"intermediate_size": 16384, "num_hidden_layers": 12}}
"""The tiny model with a text encoder of 48 MiB in fp32, and as much again in its stored weights."""

VARIES_BYTES = 4 * MIB
"""A baseline, from run to run."""

KEEPING = """
import contextlib, runpy, sys
import sdcli.engine.lean_imports as lean
plain, kept = lean.import_network, []

def import_network(*arguments):
    network = plain(*arguments)
    import sdcli.weights.borrow as borrow, torch
    from sdcli.weights.source import Source
    lend = borrow.lend_weights

    @contextlib.contextmanager
    def keep(module, component, *rest, **more):
        with lend(module, component, *rest, **more) as lent, Source(component) as source:
            shapes = {name: tuple(origin.shape) for name, origin in component.weights().items()}
            if component.name == "text_encoder":
                kept.extend(source.stored(name, shapes[name]).tensor.float().clone() for name in shapes)
            yield lent

    borrow.lend_weights = keep
    return network

lean.import_network = import_network
runpy.run_module("sdcli.engine", run_name="__main__", alter_sys=True)
"""
"""A worker that keeps the text encoder, in fp32, when its stage is over."""


@pytest.fixture(scope="module")
def wordy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder."""
    return made(tmp_path_factory.mktemp("models") / "wordy", WORDY)


def drawn(work: Path, model: Path, program: list[str]) -> tuple[dict[str, Any], int, int]:
    """A report, and what was seen from outside: footprint and resident set."""
    job = "txt2img fox --json -q -s 3 --seed 1 --dtype fp32 --mem-limit none --no-cache --force -o a.png --size 128x128"
    seen = watch([*program, *job.split(), "-m", str(model)], clean_environment(work))
    assert seen.code == 0, seen.err
    return json.loads(seen.out), seen.peak_bytes, seen.rss_bytes


def broken(folder: Path) -> list[str]:
    """The program with a worker that keeps what it should free."""
    worker = folder / "python"
    worker.write_text(f'#!/bin/sh\nshift 3\nexec {shlex.quote(sys.executable)} -P -c {shlex.quote(KEEPING)} "$@"\n')
    worker.chmod(0o755)
    return [sys.executable, "-P", "-c", f"import sys, sdcli.cli.main as m; sys.executable = {str(worker)!r}; m.main()"]


def test_the_peaks_are_those_that_others_count_and_a_component_that_is_kept_shows_in_the_next_stage(
    work: Path, wordy: Path, tmp_path: Path
) -> None:
    whole, footprint, rss = drawn(work, wordy, SDCLI)
    memory = whole["memory"]
    assert memory["peak_bytes"] == pytest.approx(footprint, rel=0.03)
    assert memory["peak_rss_bytes"] == pytest.approx(rss, rel=0.03)
    stages = {stage["name"]: stage for stage in whole["stages"]}
    for stage in stages.values():
        assert stage["peak_bytes"] <= stage["predicted_peak_bytes"] + VARIES_BYTES, stage

    leaking, footprint, _ = drawn(work, wordy, broken(tmp_path))
    assert leaking["memory"]["peak_bytes"] == pytest.approx(footprint, rel=0.03)
    for stage in leaking["stages"][1:]:
        assert stage["peak_bytes"] > stages[stage["name"]]["peak_bytes"] + 40 * MIB, "the text encoder is there still"
        assert stage["peak_bytes"] > stage["predicted_peak_bytes"] + VARIES_BYTES, "which nobody foretold"
