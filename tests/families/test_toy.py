"""A family is one folder: the toy one is registered and nothing else is touched, and every command works with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdcli.units import MIB
from tests.cli.conftest import clean_environment, shell
from tests.families.toy import network as toy

REPO = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-P", "-c", "import tests.families.toy.family; from sdcli.cli.main import main; main()"]
"""sdcli in a process that knows the family."""


def write(folder: Path, width: int, layers: int) -> None:
    """A model of the family, with random weights, in diffusers layout."""
    torch.manual_seed(0)
    for name, kind in toy.KINDS.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps({"width": width, "layers": layers}))
        save_file(kind(width, layers).half().state_dict(), folder / name / "weights.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models") / "toy"
    write(home, width=512, layers=12)
    return home


def said(work: Path, *argv: str | Path) -> dict[str, Any]:
    environment = clean_environment(work) | {"PYTHONPATH": str(REPO)}
    done = shell(work, *argv, "--json", program=PROGRAM, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.full
def test_every_command_works_with_a_family_that_is_only_registered(folder: Path, own_home: None) -> None:
    work = Path.cwd()
    Image.new("RGB", (128, 96), (200, 30, 90)).save("init.png")
    jobs = {"txt2img": ("-W", "256", "-H", "192"), "img2img": ("-i", "init.png", "-W", "256", "-H", "192")}
    for command, options in jobs.items():
        job = ["a red fox", "-n", "rain", "-m", folder, "-s", "3", "--seed", "5", "--dtype", "fp32", *options]
        init = ("-i", "init.png") if command == "img2img" else ()
        plan = said(work, "plan", *job, *(() if "-i" in options else init))
        least = plan["smallest_limit_bytes"] // MIB
        drawn = set()
        for ceiling in ("none", f"{least + 48}MiB", f"{least}MiB"):
            report = said(work, command, *job, "--mem-limit", ceiling, "-o", "p.png", "--force", "--no-metadata")
            drawn.add(Path("p.png").read_bytes())
            assert report["model"]["family"] == "toy"
            assert report["stages"][0]["name"] == "read_words"
            memory = report["memory"]
            assert memory["peak_bytes"] <= memory["predicted_peak_bytes"] <= (memory["limit_bytes"] or 2**60)
            for stage in report["stages"]:
                assert stage["peak_bytes"] <= stage["predicted_peak_bytes"] + 4 * MIB, stage  # as a baseline varies
        assert len(drawn) == 1, "three ceilings, three pictures"
        residencies = said(work, "plan", *job, "--mem-limit", f"{least}MiB")["plan"]["residency"]
        assert residencies != "resident"


@pytest.mark.full
def test_bench_measures_it(folder: Path, own_home: None) -> None:
    work = Path.cwd()
    options = ("-m", folder, "-s", "2", "--seed", "5", "--dtype", "fp32", "-W", "128", "-H", "128")
    report = said(work, "bench", "a fox", *options, "--mem-limit", "1GiB,400MiB,1KiB", "--no-warmup")
    assert [run["outcome"] for run in report["runs"]] == ["ok", "ok", "will_not_fit"]


def test_the_family_takes_less_than_200_lines() -> None:
    files = (REPO / "tests/families/toy").glob("*.py")
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files) < 200
