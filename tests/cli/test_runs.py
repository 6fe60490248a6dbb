"""Whole runs with the tiny model, through the program as a user starts it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdcli import __version__, machine
from sdcli.units import MIB
from tests.cli.conftest import FOX, Finished, shell
from tests.support import ASTRONAUT, draw


@pytest.fixture(scope="session")
def report(reported: Finished) -> dict[str, Any]:
    """The JSON report of the session's one reported run."""
    assert reported.done.returncode == 0, reported.done.stderr
    table: dict[str, Any] = json.loads(reported.done.stdout)
    return table


@pytest.fixture(scope="session")
def settings(reported: Finished) -> dict[str, Any]:
    """What the picture of that run says about itself."""
    with Image.open(reported.work / "fox.png") as image:
        table: dict[str, Any] = json.loads(image.text["sdcli"])
    return table


def pixels(source: Path | bytes) -> tuple[tuple[int, int], bytes]:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        return image.size, image.convert("RGB").tobytes()


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# txt2img --json, with a poor environment


def test_the_report_has_the_keys_of_the_contract(report: dict[str, Any]) -> None:
    assert report["schema"] == "sdcli.report/1"
    assert set(report) == {
        "schema", "images", "model", "device", "dtype", "threads", "memory", "plan", "stages", "steps", "events",
        "total_s", "sdcli_version", "torch_version",
    }  # fmt: skip
    assert set(report["model"]) == {"ref", "family", "sha256"}
    assert set(report["memory"]) == {
        "limit_bytes", "metric", "baseline_bytes", "predicted_peak_bytes", "peak_bytes", "peak_rss_bytes",
        "cgroup_peak_bytes", "samples", "period_ms",
    }  # fmt: skip
    assert set(report["plan"]) == {
        "residency", "resident_bytes", "guidance", "attention_scratch_bytes", "ways", "reasons",
        "give_back", "prepared", "fresh_decode", "stages",
    }  # fmt: skip
    for stage in report["stages"]:
        assert set(stage) == {"name", "load_s", "run_s", "predicted_peak_bytes", "peak_bytes"}
    assert set(report["steps"]) == {"count", "median_s", "bytes_read_median"}


def test_the_report_says_what_was_done(report: dict[str, Any], tiny: Path) -> None:
    assert report["images"] == [{"path": "fox.png", "seed": 7, "width": 72, "height": 64}]
    assert report["model"] == {"ref": str(tiny), "family": "sd", "sha256": None}
    assert (report["device"], report["dtype"]) == ("cpu", "fp32")
    assert [stage["name"] for stage in report["stages"]] == ["encode_prompt", "denoise", "decode"]
    assert report["steps"]["count"] == 3 and report["steps"]["bytes_read_median"] == 0
    assert report["plan"]["residency"] == "resident"
    assert report["plan"]["guidance"] == ("batched" if machine.cpu_batches() else "sequential")
    assert report["plan"]["ways"] == {"decode": "whole"} and report["plan"]["reasons"]
    assert (report["sdcli_version"], report["torch_version"]) == (__version__, torch.__version__)


def test_the_reported_memory_is_measured_and_below_the_prediction(report: dict[str, Any]) -> None:
    memory = report["memory"]
    assert memory["metric"] == "footprint" and memory["period_ms"] == 10
    assert memory["peak_rss_bytes"] > memory["peak_bytes"], "torch's own libraries are resident"
    assert 50 * MIB < memory["baseline_bytes"] < memory["peak_bytes"] < memory["predicted_peak_bytes"]
    assert memory["predicted_peak_bytes"] < memory["limit_bytes"] and memory["samples"] > 10
    assert memory["peak_bytes"] >= max(stage["peak_bytes"] for stage in report["stages"])
    assert memory["predicted_peak_bytes"] == max(stage["predicted_peak_bytes"] for stage in report["stages"])
    for stage in report["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["predicted_peak_bytes"]


def test_with_json_stdout_is_one_line_and_stderr_is_for_people(reported: Finished) -> None:
    assert reported.done.stdout.count(b"\n") == 1
    lines = reported.done.stderr.decode("ascii").splitlines()
    assert "in fp32, 72x64, seed 7" in lines[0]
    assert lines[1].startswith("fits: predicted peak ") and "denoiser resident, less than 0.1 s a step" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["encode_prompt", "denoise", "decode", "done"]
    assert b"\r" not in reported.done.stderr and b"\x1b" not in reported.done.stderr


def test_one_file_is_written_and_nothing_else(reported: Finished) -> None:
    assert files(reported.work) == {"prompt.txt", "fox.png"}


def test_the_picture_says_how_it_was_made(settings: dict[str, Any], reported: Finished, tiny: Path) -> None:
    assert settings["prompt"] == FOX and settings["negative"] == "ugly, blurred"
    assert {key: settings[key] for key in ("steps", "guidance", "seed", "width", "height", "dtype", "device")} == {
        "steps": 3, "guidance": 3.5, "seed": 7, "width": 72, "height": 64, "dtype": "fp32", "device": "cpu",
    }  # fmt: skip
    assert (settings["model"], settings["sampler"], settings["strength"]) == (str(tiny), "DDIMScheduler", None)
    with Image.open(reported.work / "fox.png") as image:
        assert image.text["parameters"].startswith(FOX + "\nNegative prompt: ugly, blurred\nSteps: 3, Sampler: DDIM")


# The same picture again


@pytest.mark.full
def test_the_settings_in_the_picture_draw_it_again(reported: Finished, settings: dict[str, Any], work: Path) -> None:
    given = {key: str(settings[key]) for key in ("model", "negative", "steps", "guidance", "seed", "width", "height")}
    options = [f"--{key}={value}" for key, value in (given | {"dtype": settings["dtype"]}).items()]
    done = shell(work, "txt2img", settings["prompt"], *options, "-v")
    path = done.stdout.decode()
    assert path == "outputs/a-red-fox-quoted-in-two-lines-e-7.png\n"
    assert pixels(work / path.strip()) == pixels(reported.work / "fox.png")

    said = done.stderr.decode()
    assert re.search(r"^device: cpu, .*; fp32: asked for; ceiling: an app's share", said)
    assert re.search(r"torch \S+, baseline \d+ MiB\nplan: the denoiser's", said)
    assert said.count("step 1/3") == said.count("step 2/3") == said.count("step 3/3") == 1
    assert "\r" not in said and files(work) == {path.strip()}


def test_img2img_edits_a_picture_quietly_and_leaves_words_out(reported: Finished, tiny: Path, work: Path) -> None:
    shutil.copy(reported.work / "fox.png", work / "init.png")
    before = (work / "init.png").read_bytes()
    done = shell(
        work, "img2img", "a secret fox", "-i", "init.png", "-m", tiny, "-s", "4", "--strength", "0.5",
        "--seed", "7", "-q", "--no-metadata", "-o", "init.png", "--force",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"init.png\n", b"")
    after = (work / "init.png").read_bytes()
    assert pixels(after)[0] == (72, 64) and pixels(after)[1] != pixels(before)[1]
    for secret in (b"secret", b"DDIM", b"Steps", b"sdcli"):
        assert secret not in after
    assert b"compositeWithTrainedAlgorithmicMedia" in after
    assert files(work) == {"init.png"}


def test_p2_a_long_prompt_from_stdin_to_a_picture_on_stdout(tiny: Path, work: Path) -> None:
    prompt = b"fox " * 10_000
    done = shell(
        work, "txt2img", "--prompt-file", "-", "-o", "-", "-m", tiny, "-s", "1", input=prompt
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"\x89PNG") and done.stdout.endswith(b"IEND\xaeB`\x82")
    assert pixels(done.stdout)[0] == (64, 64)
    notes = [line for line in done.stderr.decode().splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and re.search(r"\d+ .*dropped|left out|cut", notes[0])
    (seed,) = re.findall(r", seed (\d+)$", done.stderr.decode(), re.MULTILINE)
    with Image.open(io.BytesIO(done.stdout)) as image:
        assert json.loads(image.text["sdcli"])["seed"] == int(seed)
    assert files(work) == set()


@pytest.mark.full
def test_several_pictures_are_numbered_and_each_has_its_own_seed(tiny: Path, work: Path) -> None:
    options = ["-m", str(tiny), "-s", "1", "-b", "2", "--seed", "40", "-o", "fox.webp"]
    done = shell(work, "txt2img", "a", *options)
    assert done.stdout == b"fox-1.webp\nfox-2.webp\n" and "seed 40 to 41" in done.stderr.decode()
    seeds = []
    for name in ("fox-1.webp", "fox-2.webp"):
        with Image.open(work / name) as image:
            seeds.append(json.loads(image.getexif()[0x010E])["seed"])
    assert seeds == [40, 41] and pixels(work / "fox-1.webp") != pixels(work / "fox-2.webp")


def test_p1_an_empty_prompt_and_spaces_draw_the_same_picture(tiny: Path) -> None:
    empty, spaces, words = (draw(tiny, request=replace(ASTRONAUT, prompt=prompt)) for prompt in ("", " \t ", "a fox"))
    assert torch.equal(empty, spaces) and not torch.equal(empty, words)


# bench


@pytest.mark.full
def test_bench_reports_each_ceiling_and_its_outcome(tiny: Path, work: Path) -> None:
    limits = ["--mem-limit", "100MiB", "--mem-limit", "none"]
    done = shell(work, "bench", "-m", tiny, *limits, "-s", "2", "--json", "--no-warmup")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert set(table) == {"schema", "machine", "runs"} and table["schema"] == "sdcli.bench/1"
    assert {"cpu", "cores", "physical_memory_bytes", "system", "python"} <= set(table["machine"])
    refused, ran = table["runs"]
    assert refused["outcome"] == "will_not_fit" and refused["memory"]["limit_bytes"] == 100 * MIB
    assert refused["plan"] is None and refused["stages"] == [] and refused["steps"]["count"] == 0
    assert ran["outcome"] == "ok" and ran["memory"]["limit_bytes"] is None and ran["steps"]["count"] == 2
    assert ran["images"][0]["path"] is None and ran["images"][0]["seed"] == 0
    assert set(refused) == set(ran) and ran["schema"] == "sdcli.report/1"
    assert "under 100 MiB:\nwill not fit: " in done.stderr.decode()
    assert files(work) == set()


# Runs that end badly


def test_z1_infinity_from_the_weights_is_exit_code_5_and_no_picture(tiny: Path, work: Path) -> None:
    model = work.parent / "model"
    shutil.copytree(tiny, model)
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.weight"] = torch.full_like(tensors["decoder.conv_in.weight"], 60000.0)
    tensors["decoder.conv_in.bias"] = torch.full_like(tensors["decoder.conv_in.bias"], torch.nan)
    save_file(tensors, path)
    done = shell(work, "txt2img", "a", "-m", model, "-s", "1", "-q")
    assert (done.returncode, done.stdout) == (5, b"")
    assert re.fullmatch(r"Error: NaN or infinity came out of the stage decode: .*\n", done.stderr.decode())
    assert files(work) == set()


def test_m9_crossing_the_ceiling_is_exit_code_137_and_no_picture(
    report: dict[str, Any], tiny: Path, work: Path
) -> None:
    blind = (
        "import sdcli.app.means as host, sdcli.cli.main as program;"
        "plan = host.make_plan;"
        "host.make_plan = lambda subject, limit, *rest: plan(subject, None, *rest);"
        "program.main()"
    )
    limit = f"{report['memory']['baseline_bytes'] // MIB + 40}MiB"
    options = ["-m", str(tiny), "-s", "1", "-W", "1024", "-H", "1024", "--dtype", "fp32", "--mem-limit", limit, "-q"]
    options += ["--on-limit", "kill"]
    done = shell(work, "txt2img", "a", *options, program=[sys.executable, "-P", "-c", blind])
    assert (done.returncode, done.stdout) == (137, b""), done.stderr
    assert re.fullmatch(
        r"Error: the ceiling of \d+ MiB was crossed in the stage \w+( after step 1)?: footprint \d+ MiB,"
        r" the worker was killed; give --mem-limit \d+MiB or a smaller picture"
        r"(; sdcli resume [\d-]+[0-9a-f]+ goes on with it)?\n",
        done.stderr.decode(),
    )
    assert files(work) == set()


def kernel_limited(tiny: Path, work: Path, kernel_limit: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """A run in a control group of its own; the test is skipped where none can be had."""
    done = shell(work, "txt2img", "a", "-m", tiny, "-s", "1", "--kernel-limit", kernel_limit, *options)
    if b"this user may make no memory control group here" in done.stderr:
        pytest.skip("needs a memory control group")
    return done


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups")
def test_the_kernel_s_kill_at_its_limit_is_told_as_what_it_is(tiny: Path, work: Path) -> None:
    done = kernel_limited(tiny, work, "60MiB", "--mem-limit", "none", "-q")
    assert (done.returncode, done.stdout) == (137, b""), done.stderr
    said = "Error: the kernel killed the worker at its limit of 60 MiB in the stage start; give --kernel-limit 75MiB"
    assert done.stderr.decode() == f"{said}, or a lower --mem-limit\n"
    assert files(work) == set()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups")
@pytest.mark.full
def test_the_group_of_a_run_is_counted_beside_its_footprint(tiny: Path, work: Path) -> None:
    done = kernel_limited(tiny, work, "1GiB", "--mem-limit", "2GiB", "--json", "-o", "a.png")
    assert done.returncode == 0, done.stderr
    assert "more than the control group has: 1.00 GiB is used" in done.stderr.decode()
    memory = json.loads(done.stdout)["memory"]
    assert memory["kernel_limit_bytes"] == memory["limit_bytes"] == 1024 * MIB
    assert 100 * MIB < memory["cgroup_peak_bytes"] < 1024 * MIB
