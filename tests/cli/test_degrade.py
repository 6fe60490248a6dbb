"""A ceiling that is crossed: the run goes on from the last step with a smaller plan, and finishes within it."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from sdcli.units import MIB
from tests.cli.conftest import clean_environment, shell

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="footprints as Linux counts them")

LEAKING = """
import importlib.abc, importlib.machinery, sys

class Leaks(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "sdcli.engine.denoise":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def leaking(module):
            load(module)
            is_finite, kept = module.is_finite, []

            def leaks(latents):
                kept.append(bytearray(b"x") * (50 << 20))
                return is_finite(latents)

            module.is_finite = leaks

        spec.loader.exec_module = leaking
        return spec

sys.meta_path.insert(0, Leaks())
"""
"""A sitecustomize that makes a worker keep 50 MiB more after each step."""

UNDER = """
import sys
import sdcli.app.means as host, sdcli.cli.main as program
plan, factor = host.make_plan, float(sys.argv.pop(1))
host.make_plan = lambda subject, limit, *rest: plan(subject, limit and int(limit * factor), *rest)
program.main()
"""
"""A program whose planner predicts too little: it believes the ceiling to be higher."""

OPTIONS = ("-s", "12", "-W", "64", "-H", "64", "--seed", "11", "--dtype", "fp32", "--json")


@pytest.fixture
def baseline_bytes(tiny: Path, work: Path) -> int:
    """What a first run measured; it leaves its picture as whole.png."""
    done = shell(work, "txt2img", "a", "-m", tiny, *OPTIONS, "-o", "whole.png")
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["memory"]["peak_bytes"])


def report_of(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    table: dict[str, Any] = json.loads(done.stdout)
    return table


@pytest.mark.full
def test_a_worker_that_leaks_finishes_its_picture_in_attempts(
    tiny: Path, work: Path, tmp_path: Path, baseline_bytes: int
) -> None:
    (tmp_path / "leaking").mkdir()
    (tmp_path / "leaking" / "sitecustomize.py").write_text(LEAKING)
    limit = f"{baseline_bytes // MIB + 4 * 50 + 20}MiB"
    command = ["txt2img", "a", "-m", str(tiny), *OPTIONS, "--mem-limit", limit]
    leaking = {"PYTHONPATH": str(tmp_path / "leaking")}

    done = shell(work, *command, "-o", "fox.png", "--report", "fox.html", env=leaking)
    report = report_of(done)
    assert all(html.escape(event["what"]) in (work / "fox.html").read_text("utf-8") for event in report["events"])
    assert (work / "fox.png").read_bytes() == (work / "whole.png").read_bytes()
    crossed = [event for event in report["events"] if "be crossed" in event["what"] or "was crossed" in event["what"]]
    assert 2 <= len(crossed) <= 3 and report["steps"]["count"] == 12, "no step is run twice"
    assert [event["step"] for event in crossed] == sorted(event["step"] for event in crossed)
    for event in crossed:
        assert re.search(r"in the stage denoise after step \d+: going on from there (with|in) a", event["what"])
        assert f"note: {event['what']}" in done.stderr.decode()
    assert list(Path(clean_environment(work)["SDCLI_CACHE"], "runs").iterdir()) == []


@pytest.mark.full
def test_a_worker_that_leaks_and_is_killed_is_resumed_without_a_ceiling(
    tiny: Path, work: Path, tmp_path: Path, baseline_bytes: int
) -> None:
    (tmp_path / "leaking").mkdir()
    (tmp_path / "leaking" / "sitecustomize.py").write_text(LEAKING)
    limit = f"{baseline_bytes // MIB + 4 * 50 + 20}MiB"
    command = ["txt2img", "a", "-m", str(tiny), *OPTIONS, "--mem-limit", limit, "-o", "kill.png", "--on-limit", "kill"]
    leaking = {"PYTHONPATH": str(tmp_path / "leaking")}
    killed = shell(work, *command, "--report", "kill.html", env=leaking)
    assert killed.returncode == 137 and not (work / "kill.png").exists()
    page = (work / "kill.html").read_text("utf-8")
    assert "crossed the ceiling</span>" in page and "was crossed in the stage denoise" in page and "<svg" in page
    last = killed.stderr.decode().splitlines()[-1]
    assert re.search(r"was crossed in the stage denoise after step [34].*; sdcli resume \S+ goes on with it$", last)
    resumed = shell(work, "resume", "-q", "--mem-limit", "none", env=leaking)
    assert resumed.returncode == 0 and (work / "kill.png").read_bytes() == (work / "whole.png").read_bytes()
    assert list(Path(clean_environment(work)["SDCLI_CACHE"], "runs").iterdir()) == []


@pytest.mark.full
def test_a_planner_that_predicts_too_little_costs_a_restart(tiny: Path, work: Path) -> None:
    """At 768x768 the steps' ways differ by far more than a heap's gaps."""
    options = ["txt2img", "a", "-m", str(tiny), "-s", "2", "-W", "768", "-H", "768", "--seed", "1", "--dtype", "fp32"]
    table = json.loads(shell(work, "plan", "a", *options[2:], "--json").stdout)
    least = table["smallest_limit_bytes"]
    whole = report_of(shell(work, *options, "--json", "-o", "whole.png"))
    assert whole["memory"]["peak_bytes"] > least
    limit = (whole["memory"]["peak_bytes"] + least) // 2
    factor = 1.02 * whole["memory"]["predicted_peak_bytes"] / limit + 0.1
    program = [sys.executable, "-P", "-c", UNDER, str(factor)]
    done = shell(work, *options, "--json", "-o", "fox.png", "--mem-limit", f"{limit // MIB}MiB", program=program)
    report = report_of(done)
    assert (work / "fox.png").read_bytes() == (work / "whole.png").read_bytes()
    assert any("was crossed" in event["what"] for event in report["events"]), report["memory"]
