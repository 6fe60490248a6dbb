"""The docs say what the program has: every command, option, exit code, profile and report key is in the contract."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from sdcli.cli.main import COMMANDS, cli
from sdcli.errors import BY_NAME
from sdcli.settings import config_names

ROOT = Path(__file__).parent.parent
CONTRACT = (ROOT / "docs" / "contract.md").read_text("utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in ROOT.glob("*.md")} | {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for folder in ("docs", "benchmarks")
    for path in ROOT.joinpath(folder).glob("*.md")
}
OTHERS = {"--negative-prompt", "--cfg-scale", "--init-img", "--batch-count", "--no-warmup", "--mount-proc"} | {
    "--all",
    "--yes",
    "--help",
    "--version",
    "--user",
    "--scope",
}
"""Other names of options of ours, and options of other commands."""

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def options_of(name: str) -> set[str]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_all_its_options_are_in_the_contract(name: str) -> None:
    assert f"`sdcli {name} " in CONTRACT
    assert sorted(option for option in options_of(name) if f"`{option}`" not in CONTRACT) == []


def test_every_exit_code_and_profile_is_in_the_contract() -> None:
    codes = {0, *(kind.exit_code for kind in BY_NAME.values())}
    assert all(f"| {code} |" in CONTRACT for code in codes)
    assert all(f"`{profile}`" in CONTRACT for profile in config_names("profiles"))


@pytest.mark.parametrize("page", ["README.md", *sorted(name for name in PAGES if name.startswith("docs/"))])
def test_a_page_names_no_option_that_does_not_exist(page: str) -> None:
    named = {
        option
        for line in PAGES[page].splitlines()
        if not line.startswith(("python3 ", "hf "))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", line)
    }
    known = set().union(*(options_of(name) for name in COMMANDS))
    assert sorted(named - known - OTHERS) == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    broken = []
    for target, heading in LINK.findall(PAGES[page]):
        path = ROOT.joinpath(page).parent.joinpath(target) if target else ROOT / page
        if not path.exists() or (heading and heading not in headings(path)):
            broken.append(f"{target}#{heading}")
    assert broken == []


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
