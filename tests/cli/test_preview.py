"""--preview from the command line: on a terminal, in a file, and nowhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdcli.app.record import RunRecord, Task
from sdcli.cli.preview import TERMINAL, previews_of, protocol_of
from sdcli.cli.progress import ProgressLines
from sdcli.images.preview import is_preview, picture_of, png_of
from sdcli.images.write import place_of
from sdcli.messages import Preview
from sdcli.models.opened import open_model
from sdcli.plan.ceiling import Ceiling
from tests.cli.conftest import Command, shell
from tests.support import ASTRONAUT

JOB = ["a fox", "-s", "6", "--seed", "5", "--dtype", "fp32", "--device", "cpu", "-o", "a.png"]


@pytest.mark.full
def test_a_file_has_the_last_one_and_stdout_stays_clean(tiny: Path, work: Path) -> None:
    (work / "so-far.png").write_bytes(png_of(picture_of(1, 1, bytes(3))))  # of a run before
    done = shell(work, "txt2img", *JOB, "-m", tiny, "--preview", "so-far.png", "--preview-every", "2", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a.png\n", b"")
    shown = (work / "so-far.png").read_bytes()
    assert is_preview(shown[:256])
    with Image.open(work / "so-far.png") as preview:
        assert preview.size == (8, 8)
    assert sorted(os.listdir(work)) == ["a.png", "so-far.png"]
    plain = shell(work, "txt2img", *JOB[:-1], "b.png", "-m", tiny, "--preview", "--no-metadata")
    assert plain.returncode == 0 and plain.stdout == b"b.png\n" and b"\x1b" not in plain.stderr
    assert plain.stderr.count(b"--preview: nothing is shown, since stderr is no terminal: give --preview FILE.png") == 1
    with Image.open(work / "a.png") as one, Image.open(work / "b.png") as other:
        assert one.tobytes() == other.tobytes()


def test_a_terminal_gets_each_in_the_place_of_the_one_before(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("COLUMNS", "33")
    monkeypatch.setenv("LINES", "24")
    for name in ("NO_COLOR", "TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sdcli.cli.preview.is_terminal", lambda: True)
    monkeypatch.setattr("sdcli.cli.progress.is_terminal", lambda: True)
    previews = previews_of(TERMINAL, place_of(None, 1, force=False), False, quiet=False)
    assert previews is not None and previews_of(TERMINAL, place_of(None, 1, force=False), False, quiet=True) is None
    record = RunRecord(Task(open_model("m", tiny), ASTRONAUT, "cpu", "fp32", Ceiling(None, "")))
    progress = ProgressLines(record, record.task.ceiling, quiet=False, verbose=False, previews=previews)
    shown: Any = Preview(0, 16, 16, bytes(16 * 16 * 3)), None
    progress(*shown)
    progress(*shown)
    progress.clear()
    progress(*shown)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\u2580") == 3 * 16 * 32 and err.count("\x1b[0m\n") == 3 * 16
    assert err.index("\x1b[16A") > err.index("\x1b[0m") and err.count("\x1b[16A") == 1
    monkeypatch.setenv("NO_COLOR", "1")
    assert previews_of(TERMINAL, place_of(None, 1, force=False), False, quiet=False) is None
    assert "takes no colours" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, "blocks"),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, "blocks"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({}, "blocks"),
    ],
    ids=str,
)
def test_the_environment_tells_the_terminal(environment: dict[str, str], protocol: str) -> None:
    assert protocol_of(environment) == protocol


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("a red fox", "give a .png file, or --preview alone, after the prompt"),
        ("a.png", "is the --output as well"),
        ("./a.png", "is the --output as well"),
        ("gone/so-far.png", "give one in a folder that exists"),
        ("folder.png", "no file can be there"),
        ("photo.png", "exists and is no preview: give another file, or --force"),
    ],
)
def test_what_cannot_be_is_one_line(sdcli: Command, tiny: Path, work: Path, file: str, said: str) -> None:
    Path("folder.png").mkdir()
    Image.new("RGB", (8, 8)).save("photo.png")
    before = Path("photo.png").read_bytes()
    sdcli("txt2img", *JOB, "-m", tiny, "--preview", file).refused(2, said)
    assert Path("photo.png").read_bytes() == before


def test_a_prompt_after_it_is_not_taken_for_a_file(sdcli: Command) -> None:
    sdcli("txt2img", "--preview", "a red fox").refused(
        2, "'a red fox': give a .png file, or --preview alone, after the"
    )


def test_a_model_whose_latents_have_no_known_colours_is_told(tmp_path: Path, sdcli: Command) -> None:
    from tests.folders import made

    folder = made(tmp_path / "odd", {"vae": {"latent_channels": 5}, "unet": {"in_channels": 5, "out_channels": 5}})
    outcome = sdcli("plan", *JOB, "-m", folder, "--preview", "so-far.png")
    assert outcome.code == 0 and "warning: --preview has no effect with this model" in outcome.err


def test_previews_are_counted(sdcli: Command, tiny: Path) -> None:
    plain, shown = (json.loads(sdcli("plan", *JOB, "-m", tiny, "--json", *more).out) for more in ([], ["--preview"]))
    peaks = [next(s["predicted_peak_bytes"] for s in one["stages"] if s["name"] == "denoise") for one in (plain, shown)]
    assert peaks[1] - peaks[0] == 4 * 4 * 8 * 8 * 4
