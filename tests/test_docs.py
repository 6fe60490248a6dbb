"""The README says what the program has: every command, option, exit code and profile is in it."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from sdcli.cli.main import COMMANDS, cli
from sdcli.errors import BY_NAME
from sdcli.settings import config_names

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_all_its_options_are_in_the_readme(name: str) -> None:
    assert f"`sdcli {name} " in README
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    options = {
        option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts
    }
    assert sorted(option for option in options if f"`{option}`" not in README) == []


def test_every_exit_code_and_profile_is_in_the_readme() -> None:
    codes = {0, *(kind.exit_code for kind in BY_NAME.values())}
    assert all(f"| {code} |" in README for code in codes)
    assert all(f"`{profile}`" in README for profile in config_names("profiles"))


def test_the_readme_names_no_option_that_has_not_arrived() -> None:
    assert not any(option in README for option in ("--sampler", "--schedule", "--mask", "degrade"))
