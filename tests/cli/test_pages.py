"""--report and --plot: refused before anything is drawn, written whatever ended the run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.app.showing import outcome_of, without_home
from sdcli.errors import CeilingCrossed, Interrupted, SdcliError, WillNotFit
from sdcli.units import GIB
from tests.cli.conftest import Command, shell

FOX = ("txt2img", "a red fox <b>", "-W", "64", "-H", "64", "-s", "2", "--seed", "7", "--dtype", "fp32")


@pytest.mark.parametrize("option", ["--report", "--plot"])
def test_without_the_libraries_one_line_names_the_extra(
    sdcli: Command, work: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr("sdcli.cli.pages.LIBRARIES", ("matplotlib", "a_library_that_is_not_there"))
    file = "fox.html" if option == "--report" else "fox.png"
    sdcli(*FOX, "--model", tiny, option, file).refused(2, option, 'pip install "sdcli[report]"')
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--report", "fox.png"), 2, "give a .html file"),
        (("--plot", "fox.jpg"), 2, "give a .png file"),
        (("--report", "there.html"), 1, "'there.html' exists already: choose another name or give --force"),
        (("--report", "nowhere/fox.html"), 1, "'nowhere' is missing: create it, or give --report another"),
        (("--plot", "folder.png"), 2, "'folder.png' is not a file: give --plot a path on this machine"),
        (("--report", "http://a.b/fox.html"), 2, "is not a file"),
        (("--report", "a\nb.html"), 2, "has a control character"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_begins(
    sdcli: Command, work: Path, tiny: Path, argv: tuple[str, ...], code: int, words: str
) -> None:
    (work / "there.html").write_text("somebody else's")
    (work / "folder.png").mkdir()
    sdcli(*FOX, "--model", tiny, *argv).refused(code, words)
    assert (work / "there.html").read_text() == "somebody else's" and len(list(work.iterdir())) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("-o", "a.png", "--plot", "a.png"), "--plot 'a.png' is the --output as well"),
        (("-o", "a.png", "--plot", "sub/../a.png"), "is the --output as well"),
        (("-o", "{}/a.png", "--plot", "a.png"), "is the --output as well"),
        (("-o", "a.png", "-b", "2", "--plot", "a-2.png"), "--plot 'a-2.png' is the --output as well"),
        (("-o", "a.png", "-b", "2", "--preview", "a-2.png"), "--preview 'a-2.png' is the --output as well"),
        (("-o", "a.png", "--preview", "b.png", "--plot", "./b.png"), "--plot './b.png' is the --preview as well"),
    ],
)
def test_the_chart_never_takes_the_place_of_a_picture(
    sdcli: Command, work: Path, tiny: Path, argv: tuple[str, ...], words: str
) -> None:
    (work / "sub").mkdir()
    argv = tuple(one.format(work) for one in argv)
    sdcli(*FOX, "--model", tiny, "--force", *argv).refused(2, words)
    assert [path.name for path in work.iterdir()] == ["sub"]


def test_a_prompt_of_many_has_no_page_of_its_own(sdcli: Command, work: Path, tiny: Path) -> None:
    (work / "lines.txt").write_text("a fox\na cat --report cat.html\n")
    sdcli("txt2img", "--prompts", "lines.txt", "--model", tiny).refused(2, "line 2 of --prompts: --report and --plot")


def test_a_run_has_its_page_and_its_picture(work: Path, tiny: Path) -> None:
    home = {"HOME": str(tiny.parent), "USERPROFILE": str(tiny.parent)}
    done = shell(work, *FOX, "--model", tiny, "--report", "fox.html", "--plot", "fox.png", "-o", "out.png", env=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"out.png\n" and b"report: 'fox.html'\nplot: 'fox.png'\n" in done.stderr
    text = (work / "fox.html").read_text("utf-8")
    assert "sdcli txt2img &#39;a red fox &lt;b&gt;&#39; -W 64" in text and "<b>&#39;" not in text
    assert str(tiny.parent) not in text and f"~/{tiny.name}" in text
    assert text.count("data:image/jpeg;base64,") == 1 and "var(--denoise)" in text
    with Image.open(work / "fox.png") as picture:
        assert picture.format == "PNG"
    assert sorted(path.name for path in work.iterdir()) == ["fox.html", "fox.png", "out.png"]


@pytest.mark.full
def test_one_page_has_all_prompts_and_what_ended_the_last(work: Path, tiny: Path) -> None:
    (work / "lines.txt").write_text("a fox\na cat --mem-limit 100MiB\n")
    done = shell(
        work, "txt2img", "--prompts", "lines.txt", *FOX[2:], "--model", tiny, "--report", "fox.html", "-o", "./"
    )
    assert done.returncode == 4 and done.stderr.splitlines()[-1].startswith(b"Error: will not fit")
    text = (work / "fox.html").read_text("utf-8")
    assert "2 runs under 2 ceilings" in text and "will not fit" in text
    assert all(f"<bdi>{prompt}</bdi>" in text for prompt in ("a fox", "a cat"))


@pytest.mark.full
def test_a_bench_has_a_page_and_its_series_in_json(work: Path, tiny: Path) -> None:
    argv = ["--model", tiny, "-W", "64", "-H", "64", "-s", "2", "--mem-limit", "none,1GiB", "--no-warmup"]
    done = shell(work, "bench", *argv, "--json", "--report", "bench.html", "--plot", "bench.png")
    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    for run in runs:
        assert max(size for _, size, _ in run["memory"]["series"]) == run["memory"]["peak_bytes"]
        assert {stage for *_, stage in run["memory"]["series"]} >= {"start", "denoise"}
    text = (work / "bench.html").read_text("utf-8")
    assert "2 runs under 2 ceilings" in text and "Time against memory" in text and (work / "bench.png").is_file()


def test_outcomes_have_the_names_that_bench_gives_them() -> None:
    crossed = CeilingCrossed("crossed", "where", "denoise", 3, 5)
    errors = [None, WillNotFit("will not fit"), crossed, Interrupted(2), SdcliError("failed"), ValueError()]
    expected = ["ok", "will_not_fit", "killed", "interrupted", "failed", "failed"]
    assert list(map(outcome_of, errors)) == expected


def test_the_home_folder_is_a_tilde_in_every_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    told = {"model": {"ref": f"{tmp_path}{os.sep}m"}, "events": [{"step": 1, "what": f"{tmp_path}-other, {tmp_path}"}]}
    assert without_home(told) == {
        "model": {"ref": f"~{os.sep}m"},
        "events": [{"step": 1, "what": f"{tmp_path}-other, ~"}],
    }
    monkeypatch.setenv("HOME", os.sep)
    assert without_home(["/a/b"]) == ["/a/b"] or os.name == "nt"


@pytest.mark.full
def test_a_picture_has_a_receipt_where_it_is_asked_for_and_the_same_pixels(work: Path, tiny: Path) -> None:
    for name, more in (("with.png", ["--receipt", "--mem-limit", "2GiB"]), ("without.png", [])):
        done = shell(work, *FOX, "--model", tiny, "--json", "-o", name, *more)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        told = json.loads(shell(work, "info", name, "--json").stdout)["said"]
        if not more:
            assert told["receipt"] is None
            continue
        memory, receipt = report["memory"], told["receipt"]
        assert receipt["limit_bytes"] == 2 * GIB
        assert receipt["plan"] == f"resident, {report['plan']['guidance']}"
        assert receipt["predicted_peak_bytes"] == memory["predicted_peak_bytes"]
        assert memory["baseline_bytes"] < receipt["peak_bytes"] <= memory["peak_bytes"]
        assert receipt["peak_bytes"] < receipt["peak_rss_bytes"] <= memory["peak_rss_bytes"]
        assert 0 < receipt["seconds"] <= report["total_s"]
        assert b"\nreceipt: {" in shell(work, "info", name).stdout
    with Image.open(work / "with.png") as one, Image.open(work / "without.png") as two:
        assert one.tobytes() == two.tobytes()
    done = shell(work, "again", "with.png", "-o", "again.png")
    assert done.returncode == 0 and b"receipt" not in done.stderr
    assert (work / "again.png").read_bytes() == (work / "without.png").read_bytes(), "and no receipt of its own"


def test_a_receipt_and_no_metadata_exclude_each_other(sdcli: Command, work: Path, tiny: Path) -> None:
    sdcli(*FOX, "--model", tiny, "--receipt", "--no-metadata").refused(2, "give one of them")
