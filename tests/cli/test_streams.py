"""Row O8: standard streams that are closed, full or gone; and what is imported before a usage error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdcli.cli import main, say
from sdcli.errors import SdcliError
from tests.cli.conftest import clean_environment, shell
from tests.conftest import SDCLI

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell of Unix")

QUICK = {
    "help": ("--help", 0),
    "version": ("--version", 0),
    "txt2img help": ("txt2img --help", 0),
    "usage": ("txt2img", 2),
}


def through_a_shell(work: Path, line: str, *argv: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of sh in which `"$@"` is the program with these arguments."""
    return subprocess.run(
        ["sh", "-c", line, "sh", *SDCLI, *argv],
        cwd=work, env=clean_environment(work), stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(("line", "code"), QUICK.values(), ids=QUICK)
@pytest.mark.parametrize("stream", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_o8_a_closed_stream_is_no_failure(work: Path, line: str, code: int, stream: str) -> None:
    done = through_a_shell(work, f'"$@" {stream}', *line.split())
    assert done.returncode == code
    assert b"Traceback" not in done.stderr and b"rror" not in done.stderr.removeprefix(b"Error: no prompt")


@pytest.mark.parametrize(("line", "code"), QUICK.values(), ids=QUICK)
def test_o8_a_reader_that_has_gone_ends_the_program_quietly(work: Path, line: str, code: int) -> None:
    said = through_a_shell(work, '{ sleep 0.3; "$@"; echo $? >code; } | true', *line.split()).stderr
    assert int((work / "code").read_text()) == (code or 141)
    assert said == b"" if code == 0 else said.count(b"\n") == 1
    said = through_a_shell(work, '{ sleep 0.3; "$@" 3>&1 >&2 2>&3; echo $? >code; } | true', *line.split()).stderr
    assert int((work / "code").read_text()) == code and b"Traceback" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is of Linux")
@pytest.mark.parametrize(("line", "code"), QUICK.values(), ids=QUICK)
def test_o8_a_full_disk_behind_a_stream_is_one_line(work: Path, line: str, code: int) -> None:
    done = through_a_shell(work, '"$@" >/dev/full', *line.split())
    assert done.returncode == (code or 1)
    assert done.stderr.startswith(b"Error: ") and done.stderr.count(b"\n") == 1
    assert code or b"No space left on device" in done.stderr
    assert through_a_shell(work, '"$@" >/dev/null 2>/dev/full', *line.split()).returncode == code


def test_a_path_that_stdout_does_not_take_is_said_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SdcliError, match=r"cannot write 'outputs/fox\.png' to stdout: No space left on device"):
            say.hand_out("outputs/fox.png")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # the text is still in its buffer


@pytest.mark.full
def test_o8_a_reader_gone_in_mid_run_costs_no_picture(tiny: Path, work: Path) -> None:
    options = ["-m", str(tiny), "-s", "1", "-b", "2", "--seed", "1", "-q", "-o", "fox.png"]
    done = through_a_shell(work, '{ "$@"; echo $? >code; } | true', "txt2img", "a", *options)
    assert int((work / "code").read_text()) == 141 and done.stderr == b""
    assert {path.name for path in work.iterdir()} == {"code", "fox-1.png", "fox-2.png"}


def test_p5_bytes_that_are_no_utf_8_are_wrong_usage(work: Path) -> None:
    done = subprocess.run(
        [os.fsencode(part) for part in SDCLI] + [b"txt2img", b"cat \xff"],
        cwd=work, env=clean_environment(work), capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"Error: argument 2 is not valid UTF-8: check the terminal's encoding\n"


def test_e3_an_error_with_other_letters_passes_an_ascii_stderr(work: Path) -> None:
    poor = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    done = shell(work, "txt2img", "a", "-o", "лиса.xyz", env=poor)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert done.stderr.startswith(b"Error: '????.xyz' must end in .png")


QUICKLY = (
    [],
    ["--help"],
    ["txt2img", "--help"],
    ["img2img", "--help"],
    ["bench", "--help"],
    ["txt2img"],
    ["txt2img", "a", "-W", "513"],
    ["txt2img", "a", "--seed", "-2"],
    ["txt2img", "a", "-g", "nan"],
    ["txt2img", "a", "--mem-limit", "2048"],
    ["txt2img", "a", "-o", "fox.xyz"],
    ["txt2img", "a", "--device", "gpu"],
    ["txt2img", "a", "--profile", "iphone"],
    ["plan"],
    ["txt2img", "a", "-m", "MODEL", "--device", "nowhere"],
    ["txt2img", "a", "-m", "MODEL", "--seed", str(2**64 - 1), "-b", "2"],
    ["txt2img", "a", "-m", "MODEL", "--mem-limit", "100MiB"],
    ["img2img", "a", "-i", "missing.png"],
    ["bench", "-m", "MODEL", "--mem-limit", "1GiB,2"],
)


def test_wrong_usage_and_what_cannot_fit_are_decided_without_torch(tiny: Path, work: Path) -> None:
    driver = (
        "import json, sys; from sdcli.cli.main import run\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    code = run(argv)\n"
        "    heavy = [name for name in ('torch', 'diffusers', 'transformers', 'numpy') if name in sys.modules]\n"
        "    print(json.dumps(['outcome', code, heavy]))\n"
    )
    lines = [[str(tiny) if part == "MODEL" else part for part in argv] for argv in QUICKLY]
    done = shell(work, json.dumps(lines), program=[sys.executable, "-P", "-c", driver])
    outcomes = [json.loads(line) for line in done.stdout.decode().splitlines() if line.startswith('["outcome"')]
    expected = [0 if "--help" in argv or not argv else 4 if "100MiB" in argv else 2 for argv in QUICKLY]
    assert [code for _, code, _ in outcomes] == expected, done.stderr
    assert all(heavy == [] for *_, heavy in outcomes)


@pytest.mark.parametrize("argv", [["--help"], ["txt2img", "--help"], ["img2img", "--help"], ["bench", "--help"]])
def test_help_imports_neither_torch_nor_pillow(work: Path, argv: list[str]) -> None:
    driver = (
        "import sys; from sdcli.cli.main import run; run(sys.argv[1:])\n"
        "heavy = {'torch', 'PIL', 'numpy', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = shell(work, *argv, program=[sys.executable, "-P", "-c", driver])
    assert done.returncode == 0, done.stderr


# The boundary itself


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("one\ntwo\x1b[2J"), 1, r"ValueError: 'one\ntwo\x1b[2J'; this is a bug, --debug shows where"),
        (
            OSError(28, "No space left"),
            1,
            "the system refused something: '[Errno 28] No space left'; --debug shows where",
        ),
        (MemoryError(), 1, "there is no memory left for this: end other programs, or ask for a smaller picture"),
        (
            RuntimeError("can't start new thread"),
            1,
            "the system has no room for another thread or process: end other programs, or raise ulimit -u",
        ),
        (
            BlockingIOError(11, "Resource temporarily unavailable"),
            1,
            "the system has no room for another thread or process: end other programs, or raise ulimit -u",
        ),
        (OSError(12, "Cannot allocate memory"), 1, "the system has no memory left for this: end other programs"),
        (
            OSError(24, "Too many open files"),
            1,
            "the system has no room for another open file: end other programs, or raise ulimit -n",
        ),
        (RuntimeError("?"), 1, "RuntimeError: '?'; this is a bug, --debug shows where"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SdcliError("first\n second\u202e"), 1, r"first second\u202e"),
    ],
    ids=repr,
)
def test_whatever_happens_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sdcli.cli.txt2img.asked_of", fail)
    assert main.run(["txt2img", "a"]) == code
    captured = capfd.readouterr()
    assert (captured.out, captured.err.lstrip("\n")) == ("", f"Error: {line}\n")

    assert main.run(["txt2img", "a", "--debug"]) == code
    captured = capfd.readouterr().err
    assert captured.endswith(f"Error: {line}\n") and "Traceback (most recent call last)" in captured


def test_a_message_is_cut_in_its_middle(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise SdcliError("begin " + "x" * 9999 + " end")

    monkeypatch.setattr("sdcli.cli.txt2img.asked_of", fail)
    assert main.run(["txt2img", "a"]) == 1
    line = capfd.readouterr().err.removesuffix("\n").removeprefix("Error: ")
    assert len(line) == main.MESSAGE_LIMIT and line.startswith("begin x") and line.endswith("x end") and "…" in line


def test_no_other_room_of_the_host_says_anything_to_anybody() -> None:
    """But for the picture that images/ writes to stdout, which is the product."""
    package = Path(main.__file__).parents[1]
    talks = [
        path.relative_to(package).as_posix()
        for room in ("app", "host", "plan", "models", "images")
        for path in (package / room).rglob("*.py")
        if re.search(r"(?<![\w.])print\(|sys\.std(out|err)\b", path.read_text("utf-8"))
    ]
    assert talks == ["images/write.py"]
