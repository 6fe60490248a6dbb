"""sdcli plan: the run's own plan, told beforehand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.settings import read_profile
from sdcli.units import MIB
from tests.cli.conftest import Command
from tests.conftest import SDCLI


def planned(sdcli: Command, *argv: str | Path) -> dict[str, Any]:
    outcome = sdcli("plan", *argv, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    table: dict[str, Any] = json.loads(outcome.out)
    return table


def run_for_real(*argv: str) -> dict[str, Any]:
    done = subprocess.run([*SDCLI, *argv, "--json", "-q"], capture_output=True, text=True, check=True)
    table: dict[str, Any] = json.loads(done.stdout)
    return table


def test_the_json_report_is_that_of_the_contract(sdcli: Command, tiny: Path) -> None:
    told = planned(sdcli, "a fox", "-m", tiny, "--mem-limit", "2GiB")
    assert told["schema"] == "sdcli.plan/1" and told["fits"] is True
    assert {"plan", "memory", "stages", "smallest_limit_bytes"} <= set(told)
    assert [stage["name"] for stage in told["stages"]] == ["encode_prompt", "denoise", "decode"]
    assert told["memory"]["predicted_peak_bytes"] == max(stage["predicted_peak_bytes"] for stage in told["stages"])
    assert told["memory"]["limit_bytes"] == 2048 * MIB and told["smallest_limit_bytes"] < 2048 * MIB


@pytest.mark.full
def test_the_run_that_follows_takes_the_same_plan(sdcli: Command, tiny: Path) -> None:
    job = ["a fox", "-m", str(tiny), "--seed", "1", "-s", "2", "--device", "cpu"]
    first = run_for_real("txt2img", *job, "--mem-limit", "2GiB")
    limit = f"{planned(sdcli, *job)['smallest_limit_bytes'] // MIB + 1}MiB"
    for ceiling in ("2GiB", limit):
        told = planned(sdcli, *job, "--mem-limit", ceiling)
        drawn = run_for_real("txt2img", *job, "--mem-limit", ceiling)
        assert drawn["plan"] == told["plan"]
        assert drawn["memory"]["predicted_peak_bytes"] == told["memory"]["predicted_peak_bytes"]
        assert told["memory"]["baseline_bytes"] <= first["memory"]["baseline_bytes"]
        assert drawn["memory"]["peak_bytes"] <= told["memory"]["predicted_peak_bytes"]


def test_the_plan_tells_of_each_stage_what_stays_where_the_rest_comes_from_and_who_does_it(
    sdcli: Command, tiny: Path
) -> None:
    whole = planned(sdcli, "a fox", "-m", tiny, "--mem-limit", "none")["plan"]
    parts = [("encode_prompt", "text_encoder"), ("denoise", "unet"), ("decode", "vae")]
    assert [(stage["name"], *stage["resident"]) for stage in whole["stages"]] == parts
    assert [stage["resident"] for stage in whole["stages"]] == [
        {"text_encoder": 0}, {"unet": whole["resident_bytes"]}, {"vae": 0},
    ]  # fmt: skip
    assert whole["resident_bytes"] > 0
    assert {(stage["source"], stage["worker"]) for stage in whole["stages"]} == {("file", 1)}
    assert [stage["way"] for stage in whole["stages"]] == ["whole", whole["guidance"], "whole"]
    for size in (512, 1024):
        job = ["a fox", "-m", str(tiny), "-W", str(size), "-H", str(size)]
        least = planned(sdcli, *job)["smallest_limit_bytes"]
        tight = planned(sdcli, *job, "--mem-limit", f"{least // MIB}MiB")["plan"]
        denoise, decode = tight["stages"][1:]
        assert denoise["source"] == ("copy" if tight["prepared"] else "file") and denoise["way"] == tight["guidance"]
        assert decode["worker"] == (2 if tight["fresh_decode"] else 1)
        assert decode["way"] in (("whole", "recomputed", "unkept") if size == 512 else ("recomputed", "unkept"))


@pytest.mark.full
def test_what_does_not_fit_says_so_and_what_would(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("plan", "a fox", "-m", tiny, "--mem-limit", "230MiB", "--json", "-W", "2048", "-H", "2048")
    told = json.loads(outcome.out)
    assert outcome.code == 4 and outcome.err.startswith("Error: will not fit: ") and outcome.err.count("\n") == 1
    assert told["fits"] is False and told["plan"] is None and told["stages"] == []
    least = told["smallest_limit_bytes"]
    assert planned(sdcli, "a fox", "-m", tiny, "--mem-limit", f"{least // MIB}MiB", "-W", "2048", "-H", "2048")["fits"]


def test_the_table_shows_every_stage_and_every_reason(sdcli: Command, tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 128), "teal").save(tmp_path / "init.png")
    outcome = sdcli("plan", "a fox", "-m", tiny, "-i", tmp_path / "init.png", "--mem-limit", "1GiB")
    assert outcome.code == 0 and outcome.err == ""
    for words in (
        "64x128",
        "encode_prompt",
        "encode_image",
        "denoise",
        "decode",
        "1.00 GiB",
        "stay in memory",
        "typical",
    ):
        assert words in outcome.out


def test_it_refuses_what_a_run_would_refuse(sdcli: Command, tiny: Path) -> None:
    sdcli("plan").refused(2, "no prompt")
    sdcli("plan", "a", "-m", "nowhere").refused(3, "no model 'nowhere'")
    sdcli("plan", "a", "-m", tiny, "-i", "nothing.png").refused(2, "no such file")
    sdcli("plan", "a", "-m", tiny, "-s", "0").refused(2, "--steps")


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.every(2)
def test_it_does_not_import_torch(tiny: Path, options: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *SDCLI[1:], "plan", "a fox", "-m", str(tiny), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| torch" not in done.stderr and "| diffusers" not in done.stderr and "sdcli.plan.planner" in done.stderr


def test_a_profile_is_planned_for_with_its_own_speed_type_disk_and_ceiling(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where this machine has less memory than that one; a run with it has the ceiling alone."""
    monkeypatch.setattr("sdcli.machine.physical_memory_bytes", lambda: 1024 * MIB)
    pi, phone = (
        planned(sdcli, "a fox", "-m", tiny, "--profile", name) for name in ("raspberry-pi-5-4gb", "iphone-6gb")
    )
    assert (pi["dtype"], phone["dtype"]) == ("fp32", "fp16")
    limits = [told["memory"]["limit_bytes"] for told in (pi, phone)]
    assert limits == [read_profile(name).limit_bytes // 1024 * 1024 for name in ("raspberry-pi-5-4gb", "iphone-6gb")]
    assert (
        pi["profile"]["flops"] == 43e9 and pi["profile"]["disk_bytes"] == 90e6 and pi["memory"]["remainder"] == "wide"
    )
    assert pi["step_s"] / phone["step_s"] == pytest.approx(800 / 43, rel=0.05)
    assert pi["seconds"]["bound"] == "arithmetic" and pi["seconds"]["picture_s"] > 20 * pi["seconds"]["step_s"]
    assert pi["memory"]["baseline_measured"] is False and not pi["plan"]["prepared"]
    assert "profile" not in planned(sdcli, "a fox", "-m", tiny)


def test_what_was_said_goes_before_the_profile(sdcli: Command, tiny: Path) -> None:
    job = ["a fox", "-m", tiny, "--profile", "iphone-4gb"]
    told = planned(sdcli, *job, "--dtype", "fp32", "--mem-limit", "3GiB")
    assert told["dtype"] == "fp32" and told["memory"]["limit_bytes"] == 3 * 1024 * MIB
    assert planned(sdcli, *job, "--mem-limit", "none")["memory"]["limit_bytes"] is None
    outcome = sdcli("plan", *job, "--device", "cpu")
    assert outcome.code == 0
    assert "warning: --device cpu has no effect: iphone-4gb computes with its GPU" in outcome.err


def test_a_ceiling_that_was_asked_for_is_not_said_to_be_the_profile_s(sdcli: Command, tiny: Path) -> None:
    job = ["plan", "a fox", "-m", tiny, "--profile", "cloud-1gb"]
    assert "ceiling: 512 MiB, what --mem-limit auto takes of 1 GiB" in sdcli(*job).out
    assert "ceiling: 768 MiB, asked for: 805306368 bytes" in sdcli(*job, "--mem-limit", "768MiB").out
    beyond = sdcli(*job, "--mem-limit", "8GiB", "--kernel-limit", "2GiB")
    assert "ceiling: 1.00 GiB, all that cloud-1gb has" in beyond.out
    assert "warning: the ceiling of 8.00 GiB is more than cloud-1gb has: 1.00 GiB is used" in beyond.err
    assert "warning: --kernel-limit has no effect: cloud-1gb is another machine" in beyond.err


def test_a_plan_for_another_machine_says_whose_figures_it_has(sdcli: Command, tiny: Path) -> None:
    outcome = sdcli("plan", "a fox", "-m", tiny, "--profile", "raspberry-pi-5-4gb")
    assert (outcome.code, outcome.err) == (0, "")
    assert " on raspberry-pi-5-4gb in fp32, 64x64" in outcome.out
    for said in (
        "bound by the arithmetic",
        "what --mem-limit auto takes of 4 GiB",
        "speed: 43 GFLOP/s",
        "assumed: HPL's",
    ):
        assert said in outcome.out
    assert " of 512 MiB" in sdcli("plan", "a fox", "-m", tiny, "--profile", "cloud-1gb").out


@pytest.mark.full
def test_what_a_run_of_the_same_kind_took_is_what_a_plan_tells(sdcli: Command, tiny: Path) -> None:
    """Of small models no speed is learned: their steps go by in other things than arithmetic."""
    job = ["a fox", "-m", str(tiny), "--device", "cpu", "-s", "3"]
    before = planned(sdcli, *job)["seconds"]
    drawn = run_for_real("txt2img", *job, "--seed", "1")
    after = planned(sdcli, *job)
    assert after["seconds"]["picture_s"] == pytest.approx(drawn["total_s"], rel=0.1) and before != after["seconds"]
    three = planned(sdcli, *job, "-b", "3")["seconds"]["picture_s"]
    more = three - after["seconds"]["picture_s"]
    assert 6 * after["step_s"] < more < 2 * after["seconds"]["picture_s"], "six steps and two decodes, and one start"
    longer = planned(sdcli, *job[:-1], "13")["seconds"]["picture_s"]
    assert longer - after["seconds"]["picture_s"] == pytest.approx(10 * after["step_s"], rel=0.01)
