"""The command that lets a shell complete commands, options, run folders and figure names."""

import click
from click.shell_completion import get_completion_class

from rareneuron.cli.base import cli, emit, json_option

PROGRAM = "rareneuron"
SHELLS = ("bash", "zsh", "fish")


@cli.command(short_help="Print a completion script for your shell.")
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print a script that makes SHELL complete commands, options, run folders and figures.

    \b
    echo 'eval "$(rareneuron completion bash)"' >> ~/.bashrc
    echo 'eval "$(rareneuron completion zsh)"' >> ~/.zshrc
    rareneuron completion fish > ~/.config/fish/completions/rareneuron.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click has a class for each choice"
    script = kind(cli, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source()
    emit({"shell": shell, "script": script}, as_json, lambda: script)
