"""What a run finds around it: a locale, a working folder, a limit on threads, another run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sdcli import settings
from sdcli.cli.main import run
from sdcli.errors import shortage
from tests.cli.conftest import Command, clean_environment, shell
from tests.conftest import SDCLI

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell of Unix")

QUICK = ["-s", "1", "--dtype", "fp32", "--seed", "1"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.full
@pytest.mark.parametrize(
    "locale", [ASCII, ASCII | {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}], ids=str
)
def test_e3_names_have_the_bytes_that_were_typed_in_any_locale(
    tiny: Path, work: Path, tmp_path: Path, locale: dict[str, str]
) -> None:
    (work / "modèle").symlink_to(tiny)
    (work / "prompt ü.txt").write_text("лиса 🦊", "utf-8")
    (work / "réglages.toml").write_text('model = "modèle"\n', "utf-8")
    named = {"SDCLI_CONFIG": "réglages.toml", "SDCLI_CACHE": str(tmp_path / "Zwischenablage ü")}
    done = shell(work, "txt2img", "--prompt-file", "prompt ü.txt", "-o", "ü🦊.png", "-q", *QUICK, env=locale | named)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ü🦊.png\n".encode(), b"")
    assert "ü🦊.png".encode() in os.listdir(os.fsencode(work))
    assert (tmp_path / "Zwischenablage ü").is_dir()
    with Image.open(work / "ü🦊.png") as image:
        made = json.loads(image.text["sdcli"])
    assert (made["prompt"], made["model"]) == ("лиса 🦊", "modèle")
    again = ["img2img", "a", "-i", "ü🦊.png", "-o", "ü🦊.png"]
    done = shell(work, *again, env=locale | {"SDCLI_MODEL": "modèle"})
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"Error: '") and b"exists already" in done.stderr
    done = shell(work, "plan", "a", "-i", "ü🦊.png", "-q", "--json", env=locale | {"SDCLI_MODEL": "modèle"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.full
def test_the_report_has_the_letters_of_a_name_in_any_locale(tiny: Path, work: Path) -> None:
    named = {"SDCLI_MODEL": "модель", "SDCLI_OUTPUT": "лиса.webp"}
    (work / "модель").symlink_to(tiny)
    done = shell(work, "txt2img", "a", "--json", "-q", *QUICK, env=ASCII | named)
    assert (done.returncode, done.stderr) == (0, b"")
    report = json.loads(done.stdout)
    assert (report["images"][0]["path"], report["model"]["ref"]) == ("лиса.webp", "модель")
    assert (work / "лиса.webp").is_file()


def test_e3_bytes_that_are_no_utf_8_are_wrong_usage_in_any_locale(work: Path) -> None:
    argv = [*map(os.fsencode, SDCLI), b"txt2img", b"cat \xff"]
    done = subprocess.run(argv, cwd=work, env=clean_environment(work) | ASCII, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"Error: argument 2 is not valid UTF-8: check the terminal's encoding\n"


def from_a_deleted_folder(work: Path, *argv: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs the program where the shell stands in a folder that has gone."""
    line = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    return shell(work, *argv, program=[*line, *SDCLI])


@pytest.mark.full
def test_a_deleted_working_folder_is_no_reason_to_fail(tiny: Path, work: Path) -> None:
    done = from_a_deleted_folder(work, "txt2img", "a", "-m", tiny, "-o", work / "fox.png", "-q", *QUICK)
    assert (done.returncode, done.stderr) == (0, b"")
    done = from_a_deleted_folder(
        work, "img2img", "a", "-m", tiny, "-i", work / "fox.png", "-o", work / "edit.png", "-q", *QUICK
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert {path.name for path in work.iterdir()} == {"fox.png", "edit.png"}


@pytest.mark.parametrize("output", [[], ["-o", "fox.png"], ["-o", "./"]])
def test_nothing_is_written_to_a_deleted_working_folder(tiny: Path, work: Path, output: list[str]) -> None:
    done = from_a_deleted_folder(work, "txt2img", "a", "-m", tiny, "-q", *QUICK, *output)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"the working folder has been deleted: change to another" in done.stderr


def test_a_missing_folder_is_not_the_working_one(tiny: Path, work: Path) -> None:
    done = shell(work, "txt2img", "a", "-m", tiny, "-q", *QUICK, "-o", "missing/../fox.png")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the folder 'missing/..' is missing: create it" in done.stderr


def test_a_host_without_threads_says_what_to_do(tiny: Path, work: Path) -> None:
    driver = (
        "import sys, threading\n"
        'def start(self): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = start\n"
        "from sdcli.cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    done = shell(work, "txt2img", "a", "-m", tiny, "-q", *QUICK, program=[sys.executable, "-P", "-c", driver])
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (
        b"Error: the system has no room for another thread or process: end other programs, or raise ulimit -u\n"
    )


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("RuntimeError: can't start new thread", "another thread"),
        ("libgomp: Thread creation failed: Resource temporarily unavailable", "another thread"),
        ("[Errno 11] Resource temporarily unavailable", "another thread"),
        ("OpenBLAS blas_thread_init: pthread_create failed for thread 1 of 2", "another thread"),
        ("[Errno 12] Cannot allocate memory", "memory"),
        ("ImportError: libtorch_cpu.so: failed to map segment from shared object", "memory"),
        ("[Errno 24] Too many open files: 'x'", "open file"),
    ],
)
def test_what_is_short_is_known_by_the_words_of_libraries(said: str, lacks: str) -> None:
    assert lacks in (shortage(said) or "")
    assert shortage("IndexError: list index out of range") is None


# Two benches at once


def bench(sdcli: Command, tiny: Path, *options: str) -> list[str]:
    outcome = sdcli("bench", "-m", tiny, "--dtype", "fp32", "--no-warmup", *options)
    assert outcome.code == 0, outcome.err
    return [line for line in outcome.err.splitlines() if "another" in line]


def test_c4_two_benches_at_once_are_each_told_of_the_other(
    sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def meanwhile(*_: object) -> None:
        monkeypatch.setattr("sdcli.app.benching.run_task", lambda *_: None)
        capfd.readouterr()
        assert run(["bench", "-m", str(tiny), "--dtype", "fp32", "--no-warmup"]) == 0
        ran.append(capfd.readouterr().err)

    monkeypatch.setattr("sdcli.app.benching.run_task", meanwhile)
    assert bench(sdcli, tiny) == [
        "warning: another sdcli bench ran at the same time: the figures of both are disturbed"
    ]
    assert ran[0].splitlines()[0] == "warning: another sdcli bench is running: the figures of both are disturbed"
    assert bench(sdcli, tiny) == []  # one after the other
    monkeypatch.setattr("sdcli.app.benching.run_task", meanwhile)
    assert bench(sdcli, tiny, "-q") == []


def test_a_bench_without_a_cache_goes_on(sdcli: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdcli.app.benching.run_task", lambda *_: None)
    settings.cache_dir().parent.mkdir(exist_ok=True)
    settings.cache_dir().write_bytes(b"a file in its place")
    assert bench(sdcli, tiny) == []


WIRED = """
import sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        open({told!r}, "a").write(event + repr(arguments[1:]) + "\\n")
sys.addaudithook(hook)
"""
"""A sitecustomize that tells of whatever goes out, of the host and of its worker (PEP 578)."""


@pytest.mark.full
def test_e2_drawing_opens_no_connection(tiny: Path, work: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "wired").mkdir()
    (tmp_path / "wired" / "sitecustomize.py").write_text(WIRED.format(told=str(told)))
    proxies = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://user:secret@127.0.0.1:9/junk")
    wired = proxies | {"PYTHONPATH": str(tmp_path / "wired"), "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path)}
    for argv in (["txt2img", "a", *QUICK, "-o", "a.png"], ["img2img", "a", "-i", "a.png", *QUICK, "-o", "b.png"]):
        done = shell(work, *argv, "-m", tiny, env=wired)
        assert done.returncode == 0 and b"secret" not in done.stderr, done.stderr
    assert shell(work, "txt2img", "a", "-m", "org/not-there", env=wired).returncode == 3
    assert not told.exists(), told.read_text()
    pulled = shell(work, "models", "pull", "org/not-there", env=wired)
    assert pulled.returncode != 0 and "socket." in told.read_text(), "what goes out is seen"
