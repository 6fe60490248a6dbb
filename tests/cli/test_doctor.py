"""sdcli doctor: what it says of this machine, what it makes of a broken one, and that its rows are what a run takes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sdcli.app import doctor, outlook
from sdcli.app.checkup import Finding, Measured
from sdcli.app.outlook import usual_sides
from sdcli.cli.anonymous import anonymous
from sdcli.errors import SdcliError, WillNotFit
from sdcli.units import GIB, MIB
from tests.cli.conftest import Command, Outcome, clean_environment, shell
from tests.conftest import SDCLI

RIGHT = Measured(180 * MIB, 2e11, 2e11, {"convolution": 1e-6, "attention": 2e-6}, 2e-3, 8e9)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Measured | Exception], None]:
    """Puts what a worker found in its place; at first all is right. Only the built-in model is looked at."""

    def put(found: Measured | Exception) -> None:
        def measure(_: object) -> Measured:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(doctor, "measure", measure)

    monkeypatch.setattr(doctor, "disk_finding", lambda: Finding("disk", "1 GiB a second"))
    monkeypatch.setattr(outlook, "_candidates", lambda: [("demo", None)])
    put(RIGHT)
    return put


Put = Callable[[Measured | Exception], None]


def table(outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(outcome.out)
    return told


def flat(text: str) -> str:
    """In one line."""
    return " ".join(text.split())


def test_everything_is_told_with_its_reason(sdcli: Command, measured: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    outcome = sdcli("doctor", "--mem-limit", "2GiB")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(len(line) for line in lines if os.sep not in line) <= 80  # a path is not parted
    names = [line[2:18].strip() for line in lines]
    for name in ("device", "type", "memory", "ceiling", "cache", "Hub's cache", "versions", "self-test", "disk"):
        assert name in names
    assert "asked for: 2147483648 bytes" in outcome.out and f"torch {metadata.version('torch')}" in outcome.out
    assert "what fits under 2.00 GiB" in outcome.out and "256x256  yes " in outcome.out


def test_the_json_report_is_that_of_the_contract(sdcli: Command, measured: Put) -> None:
    told = table(sdcli("doctor", "--json", "--profile", "iphone-4gb", "--profile", "mac-m1-8gb"))
    assert told["schema"] == "sdcli.doctor/1" and told["ok"] is True
    assert told["self_test"]["right"] is True and told["self_test"]["differences"]["attention"] == 2e-6
    assert {version["state"] for version in told["versions"]} == {"tested"}
    assert [version["name"] for version in told["versions"]][:2] == ["python", "torch"]
    assert [one["profile"] for one in told["outlooks"]] == ["iphone-4gb", "mac-m1-8gb"]
    phone, mac = (one["models"][0] for one in told["outlooks"])
    assert phone["ref"] == "demo" and phone["fits"] and phone["least_limit_bytes"] <= 512 * MIB
    assert phone["seconds"]["step_s"] > mac["seconds"]["step_s"] > 0 and phone["seconds"]["bound"] == "arithmetic"
    assert told["outlooks"][0]["limit_bytes"] == 2 * GIB and "assumed" in told["outlooks"][0]["speed_from"]


def test_quick_leaves_the_table_out(sdcli: Command, measured: Put) -> None:
    assert table(sdcli("doctor", "--json", "--quick"))["outlooks"] == []


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Measured(1, 1.0, 1.0, {"product": 0.5, "attention": 0.0}, 2e-3, None), "product differ from FP32 by 0.5"),
        (Measured(1, 1.0, 1.0, {"attention": float("inf")}, 2e-3, None), "attention differ from FP32 by inf"),
        (Measured(1, 1.0, 1.0, {"attention": float("nan")}, 2e-3, None), "attention differ from FP32 by nan"),
        (SdcliError("the worker crashed in native code"), "self-test: failed, the worker crashed in native code"),
        (PermissionError(13, "Permission denied"), "self-test: failed, no worker can be started: "),
    ],
    ids=["wrong", "infinite", "not a number", "crashed", "not started"],
)
def test_arithmetic_that_is_wrong_is_a_line_and_exit_code_1(
    sdcli: Command, measured: Put, found: Measured | Exception, said: str
) -> None:
    measured(found)
    outcome = sdcli("doctor")
    assert outcome.code == 1 and outcome.err.startswith("Error: nothing can be drawn here: self-test: ")
    assert said in outcome.err and outcome.err.count("\n") == 1
    assert "X self-test" in outcome.out and "what fits" not in outcome.out
    told = table(sdcli("doctor", "--json"))
    assert told["ok"] is False and told["outlooks"] == []


def test_a_ceiling_below_python_and_torch_is_nothing_broken(sdcli: Command, measured: Put) -> None:
    measured(WillNotFit("will not fit: Python and torch alone take more than the ceiling of 64 MiB"))
    outcome = sdcli("doctor", "--mem-limit", "64MiB")
    assert (outcome.code, outcome.err) == (0, "")
    assert "! self-test not done: will not fit" in flat(outcome.out) and "256x256  no " in outcome.out


def test_a_library_that_is_missing_is_told(sdcli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    outcome = sdcli("doctor")
    assert outcome.code == 1 and "torch: none, is not installed" in outcome.err
    assert "X torch none: is not installed" in flat(outcome.out) and "what fits" not in outcome.out


def test_versions_that_nobody_tested_are_told_and_no_failure(
    sdcli: Command, measured: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version
    others = {"torch": "2.99.1+cpu", "click": "8.1.0"}
    monkeypatch.setattr(metadata, "version", lambda name: others.get(name) or version(name))
    outcome = sdcli("doctor", "--quick")
    assert outcome.code == 0
    assert "! torch 2.99.1+cpu: is newer than sdcli was tested with" in flat(outcome.out)
    assert "! click 8.1.0: is older than sdcli needs, >=8.5" in flat(outcome.out)


def test_a_known_trouble_is_told_by_its_name(sdcli: Command, measured: Put) -> None:
    outcome = sdcli("doctor", "--quick", "--dtype", "fp16", "--device", "cpu", "-q")
    assert outcome.code == 0 and "! known trouble fp16-on-cpu: arithmetic in fp16 on a CPU" in flat(outcome.out)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--profile", "iphone-99"], "no such profile: 'iphone-99'"),
        (["--device", "gpu"], "'gpu' is not one of"),
        (["--mem-limit", "2048"], "has no unit"),
        (["a fox"], "one argument too many, 'a fox': see sdcli doctor --help"),
        (["--what"], "No such option '--what'"),
    ],
)
def test_what_cannot_be_meant_is_refused(sdcli: Command, argv: list[str], said: str) -> None:
    sdcli("doctor", *argv).refused(2, said)


def test_a_cache_that_cannot_be_written_is_a_note(
    sdcli: Command, measured: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("no folder")
    monkeypatch.setenv("SDCLI_CACHE", str(Path("file", "cache").absolute()))
    outcome = sdcli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert "it cannot be written in: nothing is remembered" in flat(outcome.out)
    assert "256x256" in outcome.out


def test_a_model_that_nothing_is_known_of_is_a_row_that_says_why(
    sdcli: Command, measured: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("no folder")
    monkeypatch.setenv("SDCLI_CACHE", str(Path("file", "cache").absolute()))
    known = [("demo", None), ("synthetic:sd15", "org/sd"), ("synthetic:sdxl", "org/xl")]
    monkeypatch.setattr(outlook, "_candidates", lambda: known)
    outcome = sdcli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert "sd15, sdxl: cannot write in" in flat(outcome.out) and "256x256" in outcome.out
    told = table(sdcli("doctor", "--json"))["outlooks"][0]["models"]
    assert [row["why"] is None for row in told] == [True, False, False]
    assert told[1]["fits"] is False and told[1]["least_limit_bytes"] is None


def test_a_report_has_no_names_of_its_user(sdcli: Command, measured: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path("home", "jane").absolute()
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LOGNAME", "jane")
    monkeypatch.setenv("SDCLI_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", "/mnt/jane/hub")
    monkeypatch.setattr(platform, "node", lambda: "janes-laptop")
    anonymous.__globals__["_names"].cache_clear()
    try:
        for more in ([], ["--json"]):
            outcome = sdcli("doctor", "--report", *more)
            assert outcome.code == 0 and "jane" not in outcome.out
            assert "~/cache" in outcome.out and "/mnt/USER/hub" in outcome.out
        assert anonymous("on janes-laptop, not janes-laptops") == "on HOST, not janes-laptops"
        assert "jane" in sdcli("doctor", "--quick").out
    finally:
        anonymous.__globals__["_names"].cache_clear()


def test_usual_sizes() -> None:
    assert usual_sides((256, 256)) == [(256, 256)]
    assert usual_sides((512, 512)) == [(512, 512), (768, 768)]
    assert usual_sides((1024, 1024)) == [(512, 512), (1024, 1024)]


def test_a_torch_that_cannot_be_imported_is_what_it_tells(work: Path, tmp_path: Path) -> None:
    """The host never imports it, and the worker says what went wrong."""
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')\n")
    path = os.pathsep.join([str(broken.parent), str(Path(doctor.__file__).parent.parent.parent)])
    done = shell(
        work, "doctor", program=[sys.executable, "-m", "sdcli"], env={"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    )
    assert done.returncode == 1, done.stderr
    assert b"libtorch_cpu.so: cannot open" in done.stderr and done.stderr.count(b"\n") == 1
    assert "X self-test failed" in flat(done.stdout.decode()) and b"ceiling" in done.stdout


@pytest.mark.full
def test_a_real_worker_finds_the_arithmetic_right(work: Path) -> None:
    """With a cache that cannot be, so that nothing is known of this machine."""
    done = shell(work, "doctor", "--json", "--quick", "--dtype", "bf16", env={"SDCLI_CACHE": "/dev/null/cache"})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["self_test"]["right"] is True and told["dtype"] == "bf16"
    assert set(told["self_test"]["differences"]) == {"convolution", "product", "attention", "causal attention"}
    assert 0 < max(told["self_test"]["differences"].values()) < told["self_test"]["allowed"]
    assert told["self_test"]["flops"] > 1e8 and told["self_test"]["memory_bytes_a_second"] > 1e8


@pytest.mark.full
def test_a_row_a_plan_and_the_run_agree(sdcli: Command, measured: Put) -> None:
    """The same plan, prediction and time told by all three, and the run below what was predicted."""
    drawing = ["a fox", "--device", "cpu", "--mem-limit", "1GiB"]

    def drawn() -> dict[str, Any]:
        argv = [*SDCLI, "txt2img", *drawing, "--seed", "1", "--json", "-q", "--force", "-o", "fox.png"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    first = drawn()  # which measures this machine
    row = table(sdcli("doctor", "--json", "--mem-limit", "1GiB", "--device", "cpu"))["outlooks"][0]["models"][0]
    plan = table(sdcli("plan", *drawing, "--json", "-q"))
    run = drawn()
    assert row["fits"] and plan["fits"] and run["plan"] == plan["plan"]
    assert row["residency"] == plan["plan"]["residency"]
    assert row["peak_bytes"] == plan["memory"]["predicted_peak_bytes"] == run["memory"]["predicted_peak_bytes"]
    assert run["memory"]["peak_bytes"] <= row["peak_bytes"]
    assert row["least_limit_bytes"] == plan["smallest_limit_bytes"]
    assert row["seconds"] == plan["seconds"] and row["steps"] == run["steps"]["count"]
    assert plan["seconds"]["picture_s"] == pytest.approx(first["total_s"], rel=0.1), "as it took the first time"
    assert plan["seconds"]["step_s"] == plan["step_s"] == pytest.approx(first["steps"]["median_s"], rel=0.25)
    assert (row["width"], row["height"]) == (run["images"][0]["width"], run["images"][0]["height"])


def test_no_torch_is_loaded_to_tell(work: Path) -> None:
    code = "import sys; from sdcli.cli.main import run; run(['doctor', '--help']); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, cwd=work, env=clean_environment(work)
    )
    assert done.stdout.split()[-1] == b"False"
