"""sdcli completion SHELL: the script by which a shell completes commands, options and models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from sdcli.cli.say import hand_out


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that makes a shell complete commands, options and models.

    bash: add `eval "$(sdcli completion bash)"` to ~/.bashrc; zsh: the same with zsh to ~/.zshrc; fish: write it to
    ~/.config/fish/completions/sdcli.fish.
    """
    from sdcli.cli.main import COMPLETING, cli

    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(shell)
    maker = kind(cli, {}, "sdcli", COMPLETING)
    hand_out((maker.source_template % maker.source_vars()).strip())
