"""The command-line contract as literal tables: what stands here changes only on purpose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sdcli import __version__, errors
from sdcli.cli.main import COMMANDS, run

DRAWING = {
    "--prompt": ("-p", "TEXT", None),
    "--prompt-file": (None, "FILE", None),
    "--model": ("-m", "TEXT", "demo"),
    "--text-encoder": (None, "PATH", None),
    "--text-encoder-2": (None, "PATH", None),
    "--tiny-decoder": (None, "PATH", None),
    "--vae": (None, "PATH", None),
    "--tokenizer": (None, "PATH", None),
    "--prediction": (None, "[epsilon|v|sample]", None),
    "--ref": (None, "PATH", None),
    "--embedding": (None, "PATH", None),
    "--embedding-dir": (None, "FOLDER", None),
    "--lora": (None, "FILE[:WEIGHT]", None),
    "--lora-dir": (None, "FOLDER", None),
    "--prompts": (None, "FILE", None),
    "--negative": ("-n", "TEXT", None),
    "--emphasis": (None, "[a1111|comfy|none]", "a1111"),
    "--decoder": (None, "[full|tiny]", "full"),
    "--width": ("-W", "PIXELS", "the model's own"),
    "--height": ("-H", "PIXELS", "the model's own"),
    "--size": (None, "WXH", None),
    "--steps": ("-s", "INTEGER", "the model's own"),
    "--guidance": ("-g", "NUMBER", "the model's own"),
    "--sampler": (None, "NAME", "the model's own"),
    "--schedule": (None, "NAME", "the model's own"),
    "--clip-skip": (None, "INTEGER", "the model's own"),
    "--original-size": (None, "WXH", "the picture's"),
    "--crop": (None, "X,Y", "0,0"),
    "--target-size": (None, "WXH", "the picture's"),
    "--seed": (None, "SEED", "random"),
    "--preview": (None, "[FILE.png]", None),
    "--preview-every": (None, "INTEGER", "5"),
    "--hires": (None, "FACTOR", None),
    "--hires-strength": (None, "NUMBER", "0.7"),
    "--hires-steps": (None, "INTEGER", "as many as --steps"),
    "--hires-upscaler": (None, "[latent|lanczos]", "latent"),
    "--count": ("-b", "INTEGER", "1"),
    "--output": ("-o", "TEXT", "outputs/"),
    "--force": (None, "", None),
    "--device": (None, "[auto|mps|cuda|cpu]", "auto"),
    "--dtype": (None, "[auto|fp32|fp16|bf16]", "auto"),
    "--no-prepare": (None, "", None),
    "--threads": (None, "INTEGER", "torch's choice"),
    "--mem-limit": (None, "SIZE", "auto"),
    "--kernel-limit": (None, "SIZE", None),
    "--profile": (None, "TEXT", None),
    "--on-limit": (None, "[degrade|kill]", "degrade"),
    "--json": (None, "", None),
    "--report": (None, "FILE.html", None),
    "--plot": (None, "FILE.png", None),
    "--receipt": (None, "", None),
    "--no-metadata": (None, "", None),
    "--no-cache": (None, "", None),
    "--verbose": ("-v", "", None),
    "--quiet": ("-q", "", None),
    "--debug": (None, "", None),
    "--help": ("-h", "", None),
}
"""Long name: (short name, kind of value, default as --help shows it). Those of the contract that have arrived."""

NOT_DRAWING = {
    "--count",
    "--output",
    "--mem-limit",
    "--kernel-limit",
    "--profile",
    "--on-limit",
    "--prompts",
} | {
    "--no-metadata",
    "--receipt",
    "--no-cache",
    "--ref",
    "--hires",
    "--hires-strength",
    "--hires-steps",
    "--hires-upscaler",
    "--preview",
    "--preview-every",
}

EDITING = {
    "--init": ("-i", "PATH", None),
    "--strength": (None, "NUMBER", "0.6"),
    "--mask": (None, "PATH", None),
    "--mask-blur": (None, "INTEGER", "4"),
    "--invert-mask": (None, "", None),
    "--inpaint-area": (None, "[whole|masked]", "whole"),
    "--outpaint": (None, "LEFT,TOP,RIGHT,BOTTOM", None),
    "--background": (None, "COLOUR", "white"),
    "--fit": (None, "[crop|pad|stretch|exact]", "crop"),
}

OPTIONS = {
    "txt2img": DRAWING,
    "img2img": DRAWING | EDITING,
    "plan": {name: row for name, row in (DRAWING | EDITING).items() if name not in {"--report", "--plot", "--receipt"}},
    "doctor": {name: DRAWING[name] for name in ("--device", "--dtype", "--mem-limit", "--profile", "--json")}
    | {name: DRAWING[name] for name in ("--verbose", "--quiet", "--debug", "--help")}
    | {"--quick": (None, "", None), "--report": (None, "", None)},
    "bench": {name: row for name, row in DRAWING.items() if name not in NOT_DRAWING}
    | {name: EDITING[name] for name in ("--init", "--strength")}
    | {
        "--model": ("-m", "TEXT", "synthetic:sd15"),
        "--kernel-limit": DRAWING["--kernel-limit"],
        "--profile": (None, "TEXT[,TEXT…]", None),
        "--sizes": (None, "WXH[,WXH…]", None),
        "--repeat": (None, "INTEGER", "1"),
        "--img2img": (None, "", None),
        "--against": (None, "PATH", None),
        "--max-slowdown": (None, "NUMBER", None),
        "--max-growth": (None, "NUMBER", None),
        "--mem-limit": (None, "SIZE[,SIZE…]", "auto"),
        "--warmup": (None, "/ --no-warmup", "warmup"),
    },
}

ALIASES = {
    "--negative-prompt": "--negative",
    "--cfg-scale": "--guidance",
    "--init-img": "--init",
    "--batch-count": "--count",
}
"""What other programs call an option, and what it is called here."""

COMMAND_NAMES = ["txt2img", "img2img", "again", "info", "plan", "resume", "runs", "bench", "models", "samplers"]
COMMAND_NAMES += ["doctor", "completion"]


def help_of(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    assert run([*command, "--help"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    return captured.out


def parsed(text: str) -> dict[str, tuple[str | None, str, str | None]]:
    """The options that a help text shows."""
    table = {}
    entries = re.split(r"\n  (?=-)", text.partition("\nOptions:")[2])[1:]
    for entry in entries:
        left = re.split(r"\s{2,}", entry.strip())[0]
        found = re.fullmatch(r"(?:(-\w), )?(--[\w-]+) ?(.*)", left)
        assert found is not None, left
        default = re.search(r"\[default:\s+([^\]]+)\]", " ".join(entry.split()))
        table[found[2]] = (found[1], found[3], default[1] if default else None)
    return table


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_those_of_the_contract(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert parsed(help_of(capfd, monkeypatch, command)) == OPTIONS[command]


def test_the_commands_are_those_of_the_contract(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(capfd, monkeypatch)
    shown = re.findall(r"^  (\w+)  +\S", text.partition("Commands:")[2], re.MULTILINE)
    assert shown == list(COMMANDS) == COMMAND_NAMES


@pytest.mark.parametrize("command", OPTIONS)
def test_help_tells_the_names_that_other_programs_use(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    text = " ".join(help_of(capfd, monkeypatch, command).split())
    for alias, name in ALIASES.items():
        assert (f"Also {alias}." in text) == (name in OPTIONS[command])


def test_without_a_command_the_help_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    bare = capfd.readouterr()
    assert run(["--help"]) == 0
    assert bare == capfd.readouterr() and bare.err == "" and "Commands:" in bare.out


def test_the_version_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capfd.readouterr() == (f"sdcli {__version__}\n", "")


def test_help_shows_the_defaults_of_the_config_file(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("count = 7\n")
    monkeypatch.setenv("SDCLI_CONFIG", str(tmp_path / "config.toml"))
    table = parsed(help_of(capfd, monkeypatch, "txt2img"))
    assert table["--count"][2] == "7" and table["--seed"][2] == "random"


def test_the_exit_codes_are_those_of_the_contract() -> None:
    assert {kind.__name__: kind.exit_code for kind in errors.BY_NAME.values()} == {
        "SdcliError": 1,
        "BadRequest": 2,
        "ModelMissing": 3,
        "LacksFiles": 1,
        "CheckpointDamaged": 1,
        "WillNotFit": 4,
        "NotFinite": 5,
        "NotFiniteInHalf": 5,
        "CeilingCrossed": 137,
    }
    assert {number: errors.Interrupted(number).exit_code for number in (1, 2, 15)} == {1: 129, 2: 130, 15: 143}
    assert all(issubclass(kind, errors.SdcliError) for kind in errors.BY_NAME.values())
