"""Scripts of benchmarks/ start, what they import when they get so far is there, and peers are run as they should be."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import peers
from benchmarks.peers import Job
from benchmarks.theirs import by_diffusers
from benchmarks.trees import Watched, watched
from sdcli.engine.synthesize import write_model
from tests.families.flux2.klein import KLEIN
from tests.families.zimage.tiny import TINY as Z_IMAGE

FOLDER = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.relative_to(FOLDER.parent).with_suffix("").as_posix() for path in FOLDER.rglob("*.py"))
OURS = ("sdcli", "tests", "training", "benchmarks")


def source_of(script: str) -> str:
    return (FOLDER.parent / f"{script}.py").read_text("utf-8")


def imported(script: str) -> Iterator[tuple[str, str]]:
    """Module and name of all that a script imports of ours, in functions as well."""
    for node in ast.walk(ast.parse(source_of(script))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in OURS:
            yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_a_script_imports_of_ours_is_there(script: str) -> None:
    if script == "benchmarks/charts" or "benchmarks.charts" in dict(imported(script)):
        pytest.importorskip("matplotlib")
    for module, name in imported(script):
        found = importlib.import_module(module)
        assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module} has no {name}"


@pytest.mark.parametrize("script", [script for script in SCRIPTS if "ArgumentParser" in source_of(script)])
def test_a_script_tells_its_options(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(script.replace("/", "."))
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 0
    assert "--help" in capsys.readouterr().out


class Watching:
    """Stands for a command that has ended with an output."""

    def __init__(self, out: str, code: int = 0) -> None:
        self.out, self.errors, self.code, self.trouble = out, "", code, "its last line"

    def __call__(self, command: list[str], scratch: Path) -> Watching:
        self.command = command
        return self


JOB = Job("sd15", Path("model"), 256, 192, 4, "bf16", Path("scratch"))


def test_stable_diffusion_cpp_s_own_words_tell_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Watching(
        "[INFO ] stable-diffusion.cpp:1466 - sampling completed, taking 6.00s\n"
        "[INFO ] stable-diffusion.cpp:1491 - decode_first_stage completed, taking 2.50s\n"
    )
    monkeypatch.setattr(peers, "watched", done)
    step_s, decode_s, _ = peers.by_sd_cpp("sd-cli", JOB)
    assert (step_s, decode_s) == (1.5, 2.5)
    assert done.command[:3] == ["sd-cli", "-m", "model"]


@pytest.mark.parametrize("done", [Watching("no such word"), Watching("", code=1)])
def test_a_peer_that_fails_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], done: Watching
) -> None:
    monkeypatch.setattr(peers, "watched", done)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(peers, "ours", lambda limit, job: (1.0, 2.0, Watched(0, "", "", 3.0, 4, 5)))
    runs = peers.measured(JOB, ["1GiB", "2GiB"], ["stable-diffusion.cpp"], rounds=2)
    assert {name: one.step_s for name, one in runs.items()} == {"1GiB": [1.0, 1.0], "2GiB": [1.0, 1.0]}
    assert capsys.readouterr().out.count("stable-diffusion.cpp is left out: its last line") == 1


def test_two_peers_are_left_out_where_there_is_no_unet(capsys: pytest.CaptureFixture[str]) -> None:
    job = replace(JOB, model="klein")
    assert peers.measured(job, [], ["openvino", "stable-diffusion.cpp"], rounds=1) == {}
    assert capsys.readouterr().out.count("synthetic:klein") == 2


def test_a_command_is_watched_to_its_end(tmp_path: Path) -> None:
    program = "import sys, time; kept = bytearray(64 * 2**20); time.sleep(0.5); print('told'); sys.exit('and why')"
    done = watched([sys.executable, "-c", program], tmp_path)
    assert (done.code, done.out, done.trouble) == (1, "told\n", "and why")
    assert done.seconds >= 0.5
    assert 64 * 2**20 < done.footprint_bytes <= done.rss_bytes


@pytest.mark.parametrize("config", [KLEIN, Z_IMAGE], ids=["klein", "z-image"])
def test_diffusers_draws_without_a_text_encoder(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in write_model(config, tmp_path):
        pass
    picture = tmp_path / "a.png"
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "3", "96", "64", "fp32", "--save", str(picture)])
    by_diffusers.main()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(told["steps"]) == 2 and min(*told["steps"], told["decode"]) > 0
    with Image.open(picture) as drawn:
        assert drawn.size == (96, 64)
