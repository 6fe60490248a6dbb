"""Scripts of benchmarks/ start, and what they import when they get so far is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
